"""The gate of mutual information: the assessment that it must pass before the selection ranks by it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.queries.evaluations import Kind, assessment_of
from db.tables import ScoringRun
from pipeline.config import EvaluationConfig
from pipeline.errors import UserError
from pipeline.evaluation.gate import GATED, decide_gate, gate_row, novelty_rows
from pipeline.evaluation.quality_lines import gate_finding


def gate_warnings(
    session: Session, run: ScoringRun, *, measure: str | None, config: EvaluationConfig, force: bool
) -> list[str]:
    """Warnings about ranking by a measure of a scoring run.

    Only mutual information is gated: by its out-of-distribution AUROC under the run's sampler, from what
    `assess` and `novelty` have stored last. A model that was not assessed passes with a warning.

    Args:
        measure: that the selection ranks by.
        force: warn where it would be refused.

    Raises:
        UserError: the lower end of the AUROC is below `evaluation.gate`, without `force`.
    """
    if measure != GATED:
        return []

    def stored(kind: Kind) -> dict[str, object] | None:
        found = assessment_of(session, model_id=run.model_id, kind=kind)
        return None if found is None else found.document

    rows = novelty_rows(stored("quality"), stored("novelty"))
    gate = gate_row(decide_gate(rows, sampler=run.scorer["sampler"], threshold=config.gate))
    if gate is None:
        return [
            f"The mutual information of `{run.scorer['sampler']}` was not assessed: it is unknown whether it "
            "detects images that this model has not seen. Run `segcurate assess`."
        ]
    if gate["passed"]:
        return []
    finding = gate_finding(gate)
    if force:
        return [f"Forced, although {finding}"]
    raise UserError(
        f"Mutual information is not used for this selection: {finding}",
        "Choose another strategy, such as `stratified`, or insist with `--force`.",
    )

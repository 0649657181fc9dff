"""The verdict: how good the model is and how far it can be trusted, in the page's first sentences."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.quality_lines import chance_lines
from pipeline.evaluation.stress_verdicts import KIND_NAMES
from pipeline.format import evidence
from pipeline.report.blocks import Text
from pipeline.report.charts import spoken
from pipeline.report.contents import Contents
from pipeline.summaries.classes import worst_class
from pipeline.summaries.rounds import RoundSummary


def verdict(contents: Contents) -> list[Text]:
    """The quality of the newest model and the change since the round before; then what speaks against it,
    or that nothing does."""
    if not contents.rounds:
        return []
    doubts = list(_doubts(contents))
    if not doubts:
        good = ["Its confidence is a probability."] if _calibrated(contents) else []
        return [Text(" ".join([_quality(contents), *good]), tone="good")]
    return [Text(_quality(contents), tone="plain"), *(Text(words, tone="warn") for words in doubts)]


def _quality(contents: Contents) -> str:
    last = contents.rounds[-1]
    worst = worst_class(last.classes)
    sentences = [
        f"{last.model} has a mean IoU of {last.mean_iou.text()} with the sampler {spoken(contents.sampler)}, "
        f"on {evidence(last.images or 0, last.units)} of the {last.measured_on} split"
        f"{'' if worst is None else f'; its worst class is {worst}'}."
    ]
    before = _comparable(contents)
    if before is not None and before.mean_iou.defined and last.mean_iou.defined:
        change = last.mean_iou.value - before.mean_iou.value
        sentences.append(f"That is {change:+.3f} against {before.model}, the model of the round before.")
    if not last.promoted:
        sentences.append(f"It was refused: {contents.model} serves.")
    return " ".join(sentences)


def _comparable(contents: Contents) -> RoundSummary | None:
    """The round before, where its model was measured on the same images."""
    if len(contents.rounds) < 2:
        return None
    before = contents.rounds[-2]
    return before if before.measured_on == contents.rounds[-1].measured_on else None


def _calibrated(contents: Contents) -> bool:
    return bool(contents.calibrated) and contents.calibrated[0].confidence.reason is None


def _doubts(contents: Contents) -> Iterator[str]:
    """What speaks against the model's confidence and uncertainty; nothing where they were not tested."""
    if contents.calibrated and not _calibrated(contents):
        yield f"Its confidence is a {contents.calibrated[0].confidence.sentence}"
    if contents.quality is not None:
        rows = contents.quality["detection"]
        whole = [
            Estimate.from_document(row)
            for row in rows
            if (row["sampler"], row["measure"], row["metric"], row["part"])
            == (contents.sampler, "entropy", "auroc", "all")
        ]
        if whole and whole[0].defined and whole[0].lowest <= 0.5:
            yield f"Its uncertainty does not find its errors: AUROC {whole[0].text(digits=2)}, chance is 0.5."
        of_classes = [
            row
            for row in rows
            if (row["sampler"], row["measure"]) == (contents.sampler, "entropy") and row["part"] != "all"
        ]
        yield from chance_lines({"detection": of_classes})
    failed = [row["kind"] for row in (contents.stress or {}).get("verdicts", []) if row["ok"] is False]
    if failed:
        kinds = ", ".join(dict.fromkeys(KIND_NAMES[kind] for kind in failed))
        yield f"It failed the stress test of {kinds}: see “Does confidence fall when it should?”"

"""The commands of a round, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import (
    ROUND,
    Heatmaps,
    Json,
    add_step_command,
    in_turn,
    opened_runner,
    print_next,
    require,
    run_step,
)
from flows.cli.display import console, literal, print_json
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.rounds import Step

commands = typer.Typer()
_STEPS: tuple[tuple[Step, str], ...] = (
    (
        "train",
        "Train this round's model on every label. A killed run continues from its last checkpoint.",
    ),
    (
        "calibrate",
        "Fit every calibrator on held-out labels; with one that passes, softmax scores are probabilities.",
    ),
    (
        "evaluate",
        "Measure the model on held-out images, each number with its interval; promote or refuse it.",
    ),
)
for _name, _explanation in _STEPS:
    add_step_command(commands, _name, ROUND, _explanation)


@commands.command(rich_help_panel=ROUND)
def score(heatmaps: Heatmaps = None) -> None:
    """Score what the promoted model has not scored yet."""
    run_step("score", ready=in_turn("score"), then_next=True, heatmaps=heatmaps)


@commands.command(rich_help_panel=ROUND)
def select(
    strategy: Annotated[str | None, typer.Option(help="Instead of `selection.strategy`.")] = None,
    unit: Annotated[str | None, typer.Option(help="region or image.")] = None,
    budget: Annotated[int | None, typer.Option(help="Instead of `selection.budget`.")] = None,
    budget_unit: Annotated[str | None, typer.Option(help="regions or images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of `selection.seed`.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rank by mutual information even if it has not passed its gate.")
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option("--for", help="test or calibration: draw images of this split to label, at random."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the queue, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Select the queue: the regions to label next, each with its reason. Before there is a model, the first
    images to label."""
    given = {"strategy": strategy, "unit": unit, "budget": budget, "budget_unit": budget_unit, "seed": seed}
    overrides = {key: value for key, value in given.items() if value is not None}
    if unit is not None:
        overrides.setdefault("budget_unit", None)
    if held_out is not None:
        if overrides.keys() - {"budget"} or force:
            raise UserError(
                "Held-out images are drawn at random, and whole.", "Leave out all options but `--budget`."
            )
        _select_held_out(held_out, budget, dry_run=dry_run, as_json=as_json)
        return
    options = {"dry_run": dry_run, "overrides": overrides, "force": force}
    from pipeline.steps.ready import selection_to_make

    with opened_runner() as runner:
        require(
            runner,
            lambda project, session: selection_to_make(session, project.config, overrides, preview=dry_run),
        )
        from pipeline.steps.select import select as step

        if as_json:
            print_json(runner.call(step, **options).document())
            return
        runner.run(step, **options)
        if dry_run:
            console.print("Dry run: nothing was written.")
        else:
            print_next(runner.database)


def _select_held_out(split: str, budget: int | None, *, dry_run: bool, as_json: bool) -> None:
    if split not in ("test", "calibration"):
        raise UserError(
            f"There is no held-out split {split!r}.", "Write `--for test` or `--for calibration`."
        )
    if budget is not None and budget < 1:
        raise UserError(f"Expected `--budget` to be at least 1, but got {budget}.")
    from pipeline.steps.select.held_out import select_held_out

    with opened_runner() as runner:
        options = {"split": split, "budget": budget, "dry_run": dry_run}
        if as_json:
            print_json(runner.call(select_held_out, **options).document())
            return
        report = runner.run(select_held_out, **options)
        if dry_run:
            console.print("Dry run: nothing was written.")
        else:
            console.print(f"Next: [bold]segcurate export --queue {literal(report.name)}[/]")

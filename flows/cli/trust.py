"""Commands that test whether the uncertainty can be trusted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from flows.cli.app import TRUST, Json, Ready, opened_project, opened_session, print_line, run_step
from flows.cli.display import errors, literal, print_json, progress_bar
from pipeline.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pipeline.config import Sampler
    from pipeline.data.project import Project

OfModel = Annotated[
    str | None, typer.Option("--model", help="A model by name, such as r02; the promoted one by default.")
]

commands = typer.Typer()


@commands.command(rich_help_panel=TRUST)
def assess(
    model: OfModel = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Only this sampler; can be given again. All by default.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="At most so many held-out images.")] = None,
) -> None:
    """Does the uncertainty find the errors? Every sampler and measure, on held-out images."""
    run_step("assess", ready=_chosen(model), model=model, samplers=_samplers(sampler), most_images=images)


@commands.command(rich_help_panel=TRUST)
def stress(
    model: OfModel = None,
    images: Annotated[int, typer.Option(help="Held-out images to test.")] = 20,
) -> None:
    """Does confidence fall when it should? Magnified, attacked, blurred, dark and shuffled images."""
    run_step("stress", ready=_chosen(model), model=model, images=images)


@commands.command(rich_help_panel=TRUST)
def novelty(
    classes: Annotated[
        str, typer.Option(help="Classes to hold out, separated by commas: trains a model without them.")
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model that was trained without these classes, instead of training one."),
    ] = None,
    model: OfModel = None,
    pool_images: Annotated[int, typer.Option(help="Pool images to compare with.")] = 200,
) -> None:
    """Does the pool differ from the labeled images, and does the model detect unknown classes?"""
    from pipeline.steps.ready import require_held_out_classes

    names = [name.strip() for name in classes.split(",") if name.strip()]

    def ready(project: Project, session: Session) -> None:
        require_held_out_classes(names, project.config.data.class_names)
        _chosen(model)(project, session)

    run_step(
        "novelty",
        ready=ready,
        classes=names,
        checkpoint=checkpoint,
        model=model,
        pool_images=pool_images,
    )


@commands.command(rich_help_panel=TRUST)
def disagreements(
    limit: Annotated[int, typer.Option(help="Regions to list.")] = 20,
) -> None:
    """List regions where each sample is confident and the samples disagree."""
    run_step("disagreements", limit=limit)


@commands.command(rich_help_panel=TRUST)
def review(
    budget: Annotated[int, typer.Option(help="Regions to review.")] = 50,
    folder: Annotated[Path | None, typer.Option(help="Where the queue is exported.")] = None,
) -> None:
    """Put labels that the model confidently contradicts into a queue for review."""
    from pipeline.steps.ready import require_positive, reviewed_labels, serving_model

    require_positive("--budget", budget)
    run_step(
        "review",
        ready=lambda _, session: (serving_model(session), reviewed_labels(session)),
        budget=budget,
        folder=folder,
    )


@commands.command(rich_help_panel=TRUST)
def annotators(
    queue: Annotated[str | None, typer.Option(help="Such as `round-03`; all queues by default.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Regions to list.")] = 20,
    as_json: Json = False,
) -> None:
    """Do annotators agree, and was the model uncertain where they do not?"""
    from flows.cli.tables import show_annotators
    from pipeline.summaries.annotators import annotator_report

    with opened_session() as (project, session), progress_bar() as progress:
        report = annotator_report(session, project, queue=queue, progress=progress)
    if as_json:
        print_json({**vars(report), "rows": report.rows[:limit]})
    else:
        show_annotators(report, limit=limit)


def _chosen(model: str | None) -> Ready:
    """What a test of a model needs: the model."""
    from pipeline.steps.ready import chosen_model

    return lambda _, session: chosen_model(session, model)


def _samplers(names: list[str] | None) -> list[Sampler] | None:
    from pipeline.config import Sampler

    known = get_args(Sampler)
    for name in names or []:
        if name not in known:
            raise UserError(f"There is no sampler {name!r}.", f"Choose one of {', '.join(known)}.")
    return [name for name in known if name in names] if names else None


@commands.command(rich_help_panel=TRUST)
def simulate(
    strategies: Annotated[
        str,
        typer.Option(
            help="Strategies to compare, separated by commas, also as entropy:noise_beta=4. Three "
            "of them are controls."
        ),
    ] = "stratified,random,class_random,strided",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with other first labels.")] = 10,
    budgets: Annotated[
        str,
        typer.Option(
            help="Labels in all, as numbers or shares, or clicks as 200clicks,400clicks; the first ones are "
            "shared."
        ),
    ] = "1%,2%,4%,8%",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core, or one a GPU.")
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also train on all labels, once a seed.")
    ] = False,
    cold_start: Annotated[
        str,
        typer.Option(
            help="How the first labels are chosen: random, strided, coverage, or several to compare."
        ),
    ] = "random",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of each training, for a quick look: the models are worse.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Give every queue its audit slice.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line a cell.")] = False,
) -> None:
    """Does selecting beat drawing at random? Plays whole rounds on the images that have masks.

    The project's own rounds, queues and labels stay. Started again, a killed simulation continues.
    """
    from pipeline.operation.runner import Runner
    from pipeline.operation.simulate import run_simulate
    from pipeline.steps.report.simulation import write_simulation

    if as_json and as_csv:
        raise UserError("Expected one of `--json` and `--csv`.")
    with opened_project() as (project, database), progress_bar() as progress:
        runner = Runner(project, database, log=lambda line: errors.print(literal(line)), progress=progress)
        if project.config.scale.engine == "ray":
            runner.log(
                "`scale.engine: ray` is for the flow `simulate`: this command computes on this machine only."
            )
        summary = run_simulate(
            runner,
            strategies=strategies,
            seeds=seeds,
            budgets=budgets,
            workers=workers,
            reference=reference,
            cold_start=cold_start,
            audit=audit,
            iterations=iterations,
        )
        page = write_simulation(project, summary)
    if as_json:
        print_json(summary.document())
    elif as_csv:
        sys.stdout.write(summary.csv())
    else:
        for line in summary.lines():
            print_line(line)
        if page is not None:
            print_line(f"Open {page}.")

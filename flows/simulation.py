"""The simulation flow: `segcurate simulate`, with its progress in the flow run's log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.runner import Done, FlowRunner, run_flow, today
from flows.tasks import log_line
from pipeline.format import counted
from pipeline.operation.simulate import run_simulate
from pipeline.operation.simulate.workers import Engine, compute_all
from pipeline.progress import LoggedProgress
from pipeline.steps.report.simulation import write_simulation


@flow(name="simulate", flow_run_name=lambda: f"simulate {today()}", persist_result=False)
def simulate_flow(
    config: Path,
    strategies: str = "stratified,random,class_random,strided",
    seeds: Annotated[int, Field(ge=1)] = 10,
    budgets: str = "1%,2%,4%,8%",
    workers: int | None = None,
    reference: bool = False,
    cold_start: str = "random",
    audit: bool = False,
    iterations: int | None = None,
) -> State[Any]:
    """Compare strategies on the images that have masks; the project's rounds, queues and labels stay.

    With `scale.engine: ray`, tasks on the cluster compute the seeds.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        strategies: Names, separated by commas, such as entropy or entropy:noise_beta=4.
        seeds: Repetitions, each with other first labels.
        budgets: Labels in all, as numbers or shares.
        workers: Processes; by default one a core, or one a GPU.
        reference: Also train on all labels, once a seed.
        cold_start: How the first labels are chosen, separated by commas; strategies start from the first one.
        audit: Give every queue its audit slice.
        iterations: Of each training, for a quick look.
    """

    def work(runner: FlowRunner) -> Done:
        engine: Engine = compute_all
        if runner.project.config.scale.engine == "ray":
            from flows.ray_cluster import simulation_engine

            engine = simulation_engine(runner.project)
        summary = run_simulate(
            replace(runner, progress=LoggedProgress(log_line)),
            strategies=strategies,
            seeds=seeds,
            budgets=budgets,
            workers=workers,
            reference=reference,
            cold_start=cold_start,
            audit=audit,
            iterations=iterations,
            engine=engine,
        )
        for line in summary.lines():
            log_line(line)
        page = write_simulation(runner.project, summary)
        if page is not None:
            log_line(f"Open {page}.")
        runner.name_run(counted(len(summary.seeds), "seed"))
        return Done(" ".join(one.sentence for one in summary.verdicts) or "The simulation is finished.")

    return run_flow(config, work, title="simulate")

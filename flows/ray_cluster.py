"""A run that is scored, or a simulation that is computed, on a Ray cluster through Prefect's Ray task runner.

A run has a task for each GPU, a simulation one for each seed. A task gets the path of the configuration, and
what it is to do. Its machine reads everything else, so that no secret is sent. When a worker dies, Ray starts
its task again: another worker scores its shard, or goes on with its seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from db.engine import Database
from db.queries import shards
from flows.import_path import outside_project
from flows.tasks import log_line, of_step, opened
from pipeline.config import ScaleConfig
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.format import agree, counted
from pipeline.operation.simulate.workers import Engine, SeedWork, Work
from pipeline.progress import Progress, silent
from pipeline.steps.score.local_workers import score_on_devices
from pipeline.steps.score.writer import ScoringTotals

if TYPE_CHECKING:
    from prefect_ray.task_runners import PrefectRayFuture, RayTaskRunner

Result = TypeVar("Result")

RESTARTS = 3
"""How often Ray restarts the task of a worker that has died."""
WAIT_SECONDS = 1.0


def _score(config: Path, run_id: int) -> ScoringTotals:
    """Score a run on the devices that Ray has given to this task."""
    with opened(config) as (project, database):
        return score_on_devices(project, database, run_id=run_id)


def _simulate(config: Path, work: SeedWork) -> None:
    """Compute a seed of a simulation."""
    with opened(config) as (project, _):
        work.compute(project)


score_task = of_step(_score, "drain")
simulate_task = of_step(_simulate, "simulate-seed")


def score_on_cluster(
    project: Project, database: Database, *, run_id: int, began_at: datetime
) -> ScoringTotals:
    """Score a run on the cluster at `scale.ray_address`, and log the shards and images of each worker.

    Args:
        began_at: when the run was planned, by the store's clock.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or it has fewer GPUs than a worker needs.
        UserError: as `score_shards`, in any task, which ends all; or the workers die repeatedly.
    """
    if project.file is None:
        raise ConfigError("With `scale.engine: ray`, the project must have been read from a file.")
    if _open_shards(database, run_id) == 0:
        return ScoringTotals()
    with _cluster(project.config.scale) as runner:
        import ray
        from prefect_ray.context import remote_options

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, options = tasks_for(project.config.scale, nodes)
        log_line(f"{counted(count, 'worker')} on the Ray cluster, each with {_resources(options)}.")
        with remote_options(**options):
            futures = [
                runner.submit(score_task, {"config": project.file, "run_id": run_id}) for _ in range(count)
            ]
        totals = _gather(futures)
    return _add_dead_workers(database, totals, run_id=run_id, began_at=began_at)


def simulation_engine(project: Project) -> Engine:
    """The engine that computes a simulation on the cluster at `scale.ray_address`, with one task a seed."""
    scale, file = project.config.scale, project.file
    if file is None:
        raise ConfigError("With `scale.engine: ray`, the project must have been read from a file.")

    def compute_on_cluster(
        works: Sequence[Work], *, workers: int, tick: Callable[[], None], progress: Progress = silent
    ) -> Iterator[Work]:
        parts = SeedWork.of(works)
        with _cluster(scale) as runner:
            import ray
            from prefect_ray.context import remote_options

            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            _, options = tasks_for(scale, nodes)
            options |= {"num_cpus": 1}  # each computes with one thread
            log_line(f"{counted(len(parts), 'task')} on the Ray cluster, each with {_resources(options)}.")
            with remote_options(**options):
                futures = {
                    runner.submit(simulate_task, {"config": file, "work": part}): part for part in parts
                }
            with closing(_as_completed(list(futures), tick=tick)) as completed:
                for done in completed:
                    if done.state.is_crashed():
                        raise UserError(
                            f"A worker on the Ray cluster has died repeatedly: {done.state.message}",
                            "Read Ray's logs, then run the same command again; what is finished is kept.",
                        )
                    done.result()
                    yield from (work for work in works if work.arm.seed == futures[done].seed)

    return compute_on_cluster


def tasks_for(scale: ScaleConfig, nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, Any]]:
    """The number of tasks, and the resources that each requests from Ray.

    Args:
        nodes: the resources of each living node, by Ray's names.

    Raises:
        ConfigError: a worker needs more GPUs than the cluster has.

    >>> nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"memory": 1.0}]
    >>> count, options = tasks_for(ScaleConfig(), nodes)
    >>> count, options["num_gpus"], options["num_cpus"]
    (4, 1.0, 4)
    >>> tasks_for(ScaleConfig(gpus_per_worker=0), nodes)[0]
    2
    """
    nodes = [node for node in nodes if node.get("CPU")]  # a head node may have no CPUs for tasks
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if scale.gpus_per_worker and gpus < scale.gpus_per_worker and scale.workers is None:
        raise ConfigError(
            f"The Ray cluster has {gpus:g} GPUs, and `scale.gpus_per_worker` is {scale.gpus_per_worker:g}.",
            "Set `scale.gpus_per_worker: 0` to score on CPUs, or `scale.workers` where the cluster grows by "
            "itself.",
        )
    fitting = int(gpus // scale.gpus_per_worker) if scale.gpus_per_worker else len(nodes)
    count = scale.workers or fitting
    # Ray lets a task's numeric libraries have as many threads as it has CPUs, so the tasks of a node
    # share its CPUs; every task requests what the smallest node can give
    smallest = min((int(node["CPU"]) for node in nodes), default=1)
    cpus = max(1, smallest // -(-count // max(1, len(nodes))))
    return count, {
        "num_gpus": scale.gpus_per_worker,
        "num_cpus": cpus,
        "scheduling_strategy": "SPREAD",
        "max_retries": RESTARTS,
    }


@contextmanager
def _cluster(scale: ScaleConfig) -> Generator[RayTaskRunner[Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from prefect_ray.task_runners import RayTaskRunner
    except ImportError as error:
        raise ConfigError(
            "`scale.engine: ray` needs Ray, which is not installed.", "Run `pip install 'segcurate[ray]'`."
        ) from error
    # not as its argument `address`, with which `auto` would start a cluster where none runs
    settings = {} if scale.ray_address is None else {"address": scale.ray_address}
    with ExitStack() as stack:
        try:
            with outside_project():
                runner = stack.enter_context(RayTaskRunner(init_kwargs=settings))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster answers at `scale.ray_address: {scale.ray_address}`: {error}",
                "Start one with `ray start`, or correct the address.",
            ) from error
        yield runner


def _resources(options: dict[str, Any]) -> str:
    return f"{options['num_gpus']:g} GPUs and {options['num_cpus']} CPUs"


def _gather(futures: list[PrefectRayFuture[ScoringTotals]]) -> ScoringTotals:
    """The totals of all tasks. A task that fails ends the others; a task whose worker died does not."""
    totals = ScoringTotals()
    with closing(_as_completed(futures)) as completed:
        for future in completed:
            if future.state.is_crashed():
                message = f"warning: a worker on the cluster: {future.state.message}"
                totals += ScoringTotals(remarks=(message,))
            else:
                totals += future.result()
    return totals


def _as_completed(
    futures: list[PrefectRayFuture[Result]], *, tick: Callable[[], None] = lambda: None
) -> Generator[PrefectRayFuture[Result]]:
    """Futures as they are done; those that are not are cancelled when it is closed, as after an error.

    Args:
        tick: called about once a second.
    """
    import ray

    waiting = {future.wrapped_future: future for future in futures}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=WAIT_SECONDS)
            tick()
            for reference in ready:
                future = waiting.pop(reference)
                future.wait()
                yield future
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _add_dead_workers(
    database: Database, totals: ScoringTotals, *, run_id: int, began_at: datetime
) -> ScoringTotals:
    """Add the shards that workers had written before they died.

    Raises:
        UserError: some shards are not done.
    """
    workers = database.transact(
        lambda session: shards.workers(session, run_id=run_id, since=began_at), write=False
    )
    for worker in workers:
        log_line(f"{worker.owner}: {counted(worker.shards, 'shard')}, {counted(worker.images, 'image')}.")
        if worker.owner not in totals.workers:
            remark = f"warning: {worker.owner} has died. Its open shard is scored again."
            totals += ScoringTotals(
                worker.images, worker.regions, worker.failed, [], (worker.owner,), (remark,)
            )
    left = _open_shards(database, run_id)
    if left:
        raise UserError(
            f"The workers on the Ray cluster have ended, and {counted(left, 'shard')} "
            f"{agree(left, 'is', 'are')} not done. " + " ".join(totals.remarks),
            "Read Ray's logs; every node needs the same version of segcurate, and the project's folder at "
            "the same path. Finished shards are kept; run it again to continue.",
        )
    return totals


def _open_shards(database: Database, run_id: int) -> int:
    """The number of shards that are not done."""
    return sum(database.transact(lambda session: shards.open_shards(session, run_id=run_id), write=False))

"""Settings of what runs by itself: every night, after labels have come, and on how many devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Positive, Section


class NightlyConfig(Section):
    refresh: Literal["untouched", "never"] = "untouched"
    """What happens to a queue that is exported already when new images have been scored. `untouched`: as long
    as no mask has come for it, a new queue takes its place; the old folder stays, and its masks are still
    taken. `never`: it stays until it is labeled."""
    keep_runs: Positive | None = None
    """After each night, keep the scores of so many runs, as `segcurate prune` does. null: all."""


class RetrainConfig(Section):
    min_new_labels: Positive = 50
    """Labeled regions that no model has been trained on yet, from which on `segcurate retrain` trains. The
    rest of the round's queue goes back to the pool then."""


class ScaleConfig(Section):
    engine: Literal["local", "ray"] = "local"
    """`local`: this machine, one process a device. `ray`: a Ray cluster, through Prefect's Ray task runner;
    with a PostgreSQL `database.url`, and images that every machine can reach."""
    workers: Positive | None = None
    """Processes that score. null: one for each visible GPU, or one on a machine without; with `ray`, as many
    as the cluster has GPUs for, or one a node where `gpus_per_worker` is 0."""
    lease_seconds: Annotated[float, Field(ge=4, le=3600)] = 60.0
    """For how long a worker that is not heard of keeps its shard. One that died on this machine is recognised
    at once."""
    ray_address: str | None = None
    """With `ray`: the cluster, such as `ray://head:10001` or `auto`. null: RAY_ADDRESS, else the cluster of
    this machine, else a new one."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] = 1.0
    """With `ray`: GPUs that each worker asks for; 0 on a cluster without."""

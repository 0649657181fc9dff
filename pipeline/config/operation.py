"""Settings of scheduled work: nightly runs, retrainings, and the workers that score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Positive, Section


class NightlyConfig(Section):
    refresh: Literal["untouched", "never"] = "untouched"
    """What happens to an exported queue when new images have been scored. `untouched`: while labeling has not
    begun, a new queue replaces it; the old folder stays, and its masks are still imported. `never`: it stays
    until it is labeled."""
    retrain: Literal["due", "never"] = "due"
    """`due`: a night trains a model once there are `retrain.min_new_labels` new labels, and goes on with a
    retraining that was interrupted. `never`: only `segcurate retrain` and its schedules do."""
    keep_runs: Positive | None = None
    """Number of scoring runs to keep after each nightly run, as in `segcurate prune`. null: all."""


class RetrainConfig(Section):
    min_new_labels: Positive = 50
    """Number of labeled regions, new to every model, from which `segcurate retrain` trains. The unlabeled
    regions of the round's queue are then released into the pool."""


class ScaleConfig(Section):
    engine: Literal["local", "ray"] = "local"
    """`local`: this machine, one process a device. `ray`: a Ray cluster, through Prefect's Ray task runner;
    with a PostgreSQL `database.url`, and images that every machine can read."""
    workers: Positive | None = None
    """Processes that score. null: one for each visible GPU, or one without a GPU; with `ray`, as many as
    the cluster has GPUs for, or one a node where `gpus_per_worker` is 0."""
    lease_seconds: Annotated[float, Field(ge=4, le=3600)] = 60.0
    """How long a worker keeps its shard without a renewal. A worker that died on this machine is recognised
    immediately."""
    ray_address: str | None = None
    """With `ray`: the cluster, such as `ray://head:10001` or `auto`. null: RAY_ADDRESS, else the cluster of
    this machine, else a new one."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] = 1.0
    """With `ray`: GPUs that each worker requests; 0 on a cluster without GPUs."""

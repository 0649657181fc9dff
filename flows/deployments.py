"""The deployments of `configs/prefect.yaml`: which flows run where, when, and how many at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from db.tables import Identity
from pipeline.config.base import Positive, Section
from pipeline.config.errors import explain, read_yaml
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

DEPLOYMENTS_FILE = Path("configs") / "prefect.yaml"
TIMEZONE = "SEGCURATE_TIMEZONE"
CONFIG = "SEGCURATE_CONFIG"
PROJECT_TAG = "segcurate-project:"
"""The beginning of the tag with the id of the project that a deployment belongs to."""
NAME_TAG = "segcurate-name:"
"""The beginning of the tag with that project's name."""
_VARIABLE = re.compile(r"{{\s*\$(\w+)\s*}}")


class Schedule(Section):
    cron: str
    timezone: str
    """An IANA name; the hour is local time, in summer time too."""
    slug: str
    """The schedule's name, by which a later registration updates it."""
    active: bool = True

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"There is no time zone `{name}`; write one like Europe/Berlin.") from error
        return name


class Limit(Section):
    limit: Positive
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: Annotated[int, Field(ge=60, le=86400)] = 600


class WorkPool(Section):
    name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every run."""
        return {str(name): str(value) for name, value in self.job_variables.get("env", {}).items()}


class Deployment(Section):
    name: str
    description: str
    entrypoint: str
    """`module.function`, importable wherever segcurate is installed."""
    work_pool: WorkPool
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: tuple[Schedule, ...] = ()
    concurrency_limit: Limit | None = None


class Deployments(Section):
    name: str
    pull: list[Any]
    definitions: dict[str, Any] = Field(default_factory=dict)
    """Anchors only."""
    deployments: Annotated[list[Deployment], Field(min_length=1)]

    def of(self, identity: Identity) -> Deployments:
        """The deployments with the names and tags of one project, as a server may serve several."""
        tags = (PROJECT_TAG + identity.id, NAME_TAG + identity.name)
        ending = slug(identity)
        owned = [
            item.model_copy(update={"name": f"{item.name}-{ending}", "tags": (*item.tags, *tags)})
            for item in self.deployments
        ]
        return self.model_copy(update={"deployments": owned})

    @property
    def pools(self) -> dict[str, WorkPool]:
        """The work pools that the deployments name, by name."""
        return {deployment.work_pool.name: deployment.work_pool for deployment in self.deployments}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every run of any deployment."""
        return {key: value for pool in self.pools.values() for key, value in pool.environment.items()}


def read_deployments(file: Path | None, *, config: Path) -> Deployments:
    """Read the deployments, with `{{ $NAME }}` replaced from the environment.

    Args:
        file: None is ./configs/prefect.yaml, else the file that is installed with segcurate.
        config: the project's YAML, the value of `{{ $SEGCURATE_CONFIG }}`.

    Raises:
        ConfigError: the file is missing, is not YAML, names a variable that is not set, or does not validate.
    """
    path = file or _default_file()
    document = read_yaml(path, remedy="Name a file with `--file`.")
    variables = {TIMEZONE: "UTC"} | os.environ | {CONFIG: os.path.abspath(config)}
    try:
        return TypeAdapter(Deployments).validate_python(_filled(document, variables, path))
    except ValidationError as error:
        raise ConfigError(explain(error, Deployments, path=path)) from error


def slug(identity: Identity) -> str:
    """The project's name as lower-case letters, digits and dashes, or the start of its id if none is left."""
    return re.sub("[^a-z0-9]+", "-", identity.name.lower()).strip("-") or identity.id[:8]


def registrable(deployment: Deployment, *, pool: bool) -> RunnerDeployment:
    """The deployment as a Prefect object: for its work pool, or for the process that serves it.

    Raises:
        ConfigError: the entrypoint is no flow, or the flow has no such parameter.
    """
    from prefect import Flow
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    module, _, name = deployment.entrypoint.rpartition(".")
    try:
        flow = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"The entrypoint `{deployment.entrypoint}` cannot be imported: {error}.") from error
    if not isinstance(flow, Flow):
        raise ConfigError(f"The entrypoint `{deployment.entrypoint}` is not a Prefect flow.")
    unknown = sorted(set(deployment.parameters) - set(flow.parameters.properties))
    if unknown:
        raise ConfigError(f"The flow `{flow.name}` has no parameter {', '.join(unknown)}.")
    try:
        schedules = [
            DeploymentScheduleCreate(
                schedule=CronSchedule(cron=schedule.cron, timezone=schedule.timezone),
                active=schedule.active,
                slug=schedule.slug,
            )
            for schedule in deployment.schedules
        ]
    except ValidationError as error:
        raise ConfigError(f"The schedule of `{deployment.name}` is not valid:\n{error}") from error
    limit = deployment.concurrency_limit
    made = RunnerDeployment.from_flow(
        flow,
        deployment.name,
        description=f"{deployment.description}\n\n{flow.description or ''}".strip(),
        tags=list(deployment.tags),
        parameters=deployment.parameters,
        schedules=schedules,
        concurrency_limit=None
        if limit is None
        else ConcurrencyLimitConfig(
            limit=limit.limit,
            collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy),
            grace_period_seconds=limit.grace_period_seconds,
        ),
        work_pool_name=deployment.work_pool.name if pool else None,
        job_variables=deployment.work_pool.job_variables if pool else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.entrypoint = deployment.entrypoint
    return made


def _default_file() -> Path:
    package = Path(__file__).parent
    candidates = (DEPLOYMENTS_FILE, package / "prefect.yaml", package.parent / DEPLOYMENTS_FILE)
    return next((path for path in candidates if path.is_file()), DEPLOYMENTS_FILE)


def _filled(value: Any, variables: Mapping[str, str], path: Path) -> Any:
    """The YAML value with each `{{ $NAME }}` replaced."""
    if isinstance(value, dict):
        return {key: _filled(item, variables, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables, path) for item in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(f"{path} names ${match[1]}, which is not set.", f"Set it: export {match[1]}=…")
        return variables[match[1]]

    return _VARIABLE.sub(lookup, value)

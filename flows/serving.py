"""Deployments on a Prefect server: registered for workers, or served by this process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from db.tables import Identity
from flows.automations import (
    TAG,
    after_labels,
    alerts,
    dead_runs,
    dead_starts,
    put_automation,
    retrain_after_labels,
)
from flows.deployments import NAME_TAG, PROJECT_TAG, Deployment, Deployments, registrable, slug
from flows.import_path import outside_project
from pipeline.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import DeploymentFilter
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.runner import Runner

RETRAIN = "flows.retrain.retrain"
POLL_SECONDS = 5.0
ALERTS_BLOCK = "segcurate-alerts"
"""The block on the Prefect server that holds the address of alerts."""


def put_pools(deployments: Deployments, *, limit: int | None) -> list[str]:
    """Create the missing work pools, of type process; returns a line a pool about what was done.

    Args:
        limit: runs at a time in a pool; None keeps a pool's limit, and sets none for a new pool.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    lines: list[str] = []
    with get_client(sync_client=True) as client:
        for name in deployments.pools:
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
                template = ProcessWorker.get_default_base_job_template()
                client.create_work_pool(
                    WorkPoolCreate(
                        name=name, type="process", base_job_template=template, concurrency_limit=limit
                    )
                )
                lines.append(f"Work pool {name}: created, {_at_once(limit)}.")
                continue
            if limit is not None and limit != pool.concurrency_limit:
                client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))
                pool.concurrency_limit = limit
            lines.append(f"Work pool {name}: exists, {_at_once(pool.concurrency_limit)}.")
    return lines


def put_automations(deployments: Deployments, identity: Identity) -> list[str]:
    """Create or update the automations; returns a line an automation about what was done.

    Raises:
        UserError: a deployment that imported labels would start belongs to another project.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    automations = [dead_runs(), dead_starts()]
    lines: list[str] = []
    with get_client(sync_client=True) as client:
        for name in (item.name for item in deployments.deployments if item.entrypoint == RETRAIN):
            try:
                known = client.read_deployment_by_name(f"retrain/{name}")
            except ObjectNotFound:
                lines.append(f"Imported labels start {name} once `segcurate deploy` has registered it.")
            else:
                _check_owner(known, identity)
                automations.append(retrain_after_labels(known.id, name=name, project=identity.id))
    for automation in automations:
        lines.append(f"{automation.name}: {'created' if put_automation(automation) else 'up to date'}.")
    return lines


def put_alerts(to: str) -> str:
    """Let the server send a message about each run of any project that fails, crashes, or ends with warnings.

    Args:
        to: an address as Apprise writes it. The server stores it encrypted.

    Returns:
        A line about what was done.

    Raises:
        UserError: Apprise does not know such addresses.
    """
    from apprise import Apprise
    from prefect.blocks.notifications import SlackWebhook
    from pydantic import SecretStr

    if not Apprise().add(to):
        raise UserError(
            "The address of alerts is none that Apprise knows.",
            "Write json://host/path for a webhook, mailtos://user:password@host for mail, or see "
            "https://github.com/caronc/apprise/wiki.",
        )
    # of Prefect's blocks this one takes every address of Apprise, not only Slack's
    block = SlackWebhook(url=SecretStr(to), notify_type="warning")
    automation = alerts(cast(UUID, block.save(ALERTS_BLOCK, overwrite=True)))
    return f"{automation.name}: {'created' if put_automation(automation) else 'up to date'}."


def claim_names(deployments: Deployments, identity: Identity) -> None:
    """Check that no other project has deployments of these names, and remove those that this project had
    under other names: before deployments carried their project's name, or before it was renamed.

    Raises:
        UserError: a deployment of one of the names belongs to another project.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, DeploymentFilterTags

    mine, ending = PROJECT_TAG + identity.id, f"-{slug(identity)}"
    ours = {item.name: item for item in deployments.deployments}
    former = {item.name.removesuffix(ending): item for item in deployments.deployments}
    with get_client(sync_client=True) as client:
        named = DeploymentFilter(name=DeploymentFilterName(any_=[*ours, *former]))
        tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[mine]))
        found = {known.id: known for wanted in (named, tagged) for known in _all_deployments(client, wanted)}
        for known in found.values():
            if known.name in ours:
                _check_owner(known, identity)
        for known in found.values():
            before = former.get(known.name)
            old = (
                _owner(known) is None
                and before is not None
                and TAG in known.tags
                and known.entrypoint == before.entrypoint
                and known.parameters.get("config") == before.parameters.get("config")
            )
            renamed = _owner(known) == mine and NAME_TAG + identity.name not in known.tags
            if old or renamed:
                for automation in client.read_automations_by_name(after_labels(known.name)):
                    if any(
                        str(getattr(do, "deployment_id", "")) == str(known.id) for do in automation.actions
                    ):
                        client.delete_automation(automation.id)
                client.delete_deployment(known.id)


def register(deployments: Deployments, identity: Identity) -> None:
    """Create or update a project's pools, deployments and automations on the configured server.

    Raises:
        UserError: as `claim_names`.
    """
    claim_names(deployments, identity)
    prepared = [registrable(item, pool=True) for item in deployments.deployments]
    put_pools(deployments, limit=None)
    for deployment in prepared:
        deployment.apply()
    put_automations(deployments, identity)


def serve_until_stopped(
    deployments: Deployments,
    identity: Identity,
    *,
    limit: int,
    ready: Callable[[Sequence[Deployment]], None],
) -> None:
    """Register the deployments, and run them when due in child processes until SIGTERM or Ctrl-C.

    The schedules stay active when this process ends: a restart of the machine does not stop nightly runs.

    Args:
        limit: runs at a time.
        ready: called once everything is registered.

    Raises:
        UserError: as `claim_names`.
    """
    from prefect.runner import Runner

    claim_names(deployments, identity)
    prepared = [registrable(item, pool=False) for item in deployments.deployments]
    runner = Runner(name="segcurate", pause_on_shutdown=False, limit=limit, query_seconds=POLL_SECONDS)
    for deployment in prepared:
        runner.add_deployment(deployment)
    put_automations(deployments, identity)
    ready(deployments.deployments)
    with outside_project():
        asyncio.run(_run(runner))


def next_run(deployment: Deployment, *, after: datetime | None = None) -> datetime | None:
    """The next start of the deployment, in its schedule's time zone; None without an active schedule."""
    from prefect.server.schemas.schedules import CronSchedule

    start = after or datetime.now(UTC)
    times: list[datetime] = []
    for schedule in deployment.schedules:
        if schedule.active:
            dates = CronSchedule(cron=schedule.cron, timezone=schedule.timezone).get_dates(1, start)
            times += [date.astimezone(ZoneInfo(schedule.timezone)) for date in asyncio.run(dates)]
    return min(times, default=None)


def _owner(deployment: DeploymentResponse) -> str | None:
    """The tag with the id of a deployment's project; None where it was registered before they had one."""
    return next((tag for tag in deployment.tags if tag.startswith(PROJECT_TAG)), None)


def _check_owner(deployment: DeploymentResponse, identity: Identity) -> None:
    if _owner(deployment) in (None, PROJECT_TAG + identity.id):
        return
    names = [tag for tag in deployment.tags if tag.startswith(NAME_TAG)]
    other = names[0].removeprefix(NAME_TAG) if names else "another one"
    raise UserError(
        f"The deployment {deployment.name} on this Prefect server belongs to the project {other!r}, "
        f"and this is the project {identity.name!r}, with another database.",
        "Give one of them another `name` in segcurate.yaml and run `segcurate db rename`, "
        "or use another Prefect server.",
    )


def _all_deployments(client: SyncPrefectClient, wanted: DeploymentFilter) -> Generator[DeploymentResponse]:
    """The deployments that match, from all pages of the server's list. A new one moves none off its page."""
    from prefect.client.schemas.sorting import DeploymentSort

    read = 0
    while page := client.read_deployments(
        deployment_filter=wanted, sort=DeploymentSort.CREATED_DESC, offset=read
    ):
        yield from page
        read += len(page)


async def _run(runner: Runner) -> None:
    """Run deployments when due until SIGTERM or Ctrl-C, which cancels active runs and frees their slots."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    serving = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # the runner first sets its own handler, which would not cancel its runs
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await runner.astop()
    stopping.cancel()
    await serving


def _at_once(limit: int | None) -> str:
    return "no limit of its own" if limit is None else f"at most {limit} runs at a time"

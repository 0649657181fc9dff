"""Prefect's automations: dead runs become crashed ones, imports start retrainings, alerts are sent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

WITH_WARNINGS = "Completed with warnings"
"""The name of a completed state in which a part was not done, or some files were not used."""
LABELS_IMPORTED = "segcurate.labels.imported"
"""The event that an import emits for new labels."""
TAG = "segcurate"
"""The tag of each deployment in configs/prefect.yaml. The automations ignore runs without it: other
flows on the server may have slower heartbeats."""
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
SILENCE = timedelta(seconds=90)
"""Three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY, 30 s) without one: the run is dead."""
START = timedelta(minutes=10)
"""How long a run may take to start: `grace_period_seconds`, after which it loses its slot anyway."""


def dead_runs() -> AutomationCore:
    """Marks a run whose heartbeats stop before it ends as crashed, which frees its slot."""
    return _crash(
        "segcurate: dead runs",
        after="prefect.flow-run.heartbeat",
        within=SILENCE,
        message=f"No heartbeat for {SILENCE.total_seconds():.0f} seconds: its process has died. "
        "The next run continues its work.",
    )


def dead_starts() -> AutomationCore:
    """Marks a run that a worker took and never started as crashed, which frees its slot."""
    return _crash(
        "segcurate: runs that never start",
        after="prefect.flow-run.Pending",
        within=START,
        message=f"Not started within {START.total_seconds() / 60:.0f} minutes: its worker has died.",
    )


def resource_id(project: str) -> str:
    """The resource of the events about a project, by the project's id."""
    return f"segcurate.project.{project}"


def retrain_after_labels(deployment: UUID, *, name: str, project: str) -> AutomationCore:
    """Starts the deployment `name` after an import into the project of this id; the retraining checks whether
    there are enough labels."""
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": [LABELS_IMPORTED],
        "match": {"prefect.resource.id": resource_id(project)},
        "threshold": 1,
        "within": 0,
    }
    action = {"type": "run-deployment", "source": "selected", "deployment_id": str(deployment)}
    return _automation(
        after_labels(name),
        description="A retraining that finds too few new labels ends at once.",
        trigger=trigger,
        action=action,
    )


def alerts(block: UUID) -> AutomationCore:
    """Sends a message by a notification block when a run fails, crashes, or ends with warnings."""
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": [f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed", WITH_WARNINGS)],
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": _OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": 0,
    }
    action = {
        "type": "send-notification",
        "block_document_id": str(block),
        "subject": "segcurate: {{ flow.name }}: {{ flow_run.state.name }}",
        "body": "{{ flow_run.name }} {{ flow_run.tags | join(' ') }}\n{{ flow_run.state.message }}\n"
        "{{ flow_run | ui_url }}",
    }
    return _automation(
        "segcurate: alerts",
        description="Sends a message when a run fails, crashes, or ends with warnings.",
        trigger=trigger,
        action=action,
    )


def after_labels(name: str) -> str:
    """The name of the automation that starts the deployment `name` after an import."""
    return f"segcurate: labels imported, {name}"


def put_automation(automation: AutomationCore) -> bool:
    """Create the automation, or update the one with its name; one that was switched off stays off.

    Returns:
        Whether it is new.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(automation.name)
        if not known:
            client.create_automation(automation)
            return True
        first, *doubles = known
        client.update_automation(first.id, automation.model_copy(update={"enabled": first.enabled}))
        for double in doubles:
            client.delete_automation(double.id)
        return False


def _crash(name: str, *, after: str, within: timedelta, message: str) -> AutomationCore:
    """Marks a run as crashed that sends no event within that time of the event `after`."""
    trigger = {
        "type": "event",
        "posture": "Proactive",
        "after": [after],
        # any event: segcurate's runs end in states with their own names, such as Skipped
        "expect": ["prefect.flow-run.*"],
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": _OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": within.total_seconds(),
    }
    action = {"type": "change-flow-run-state", "state": "CRASHED", "message": message}
    return _automation(name, description=message, trigger=trigger, action=action)


def _automation(
    name: str, *, description: str, trigger: Mapping[str, object], action: Mapping[str, object]
) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore

    return AutomationCore.model_validate(
        {"name": name, "description": description, "trigger": trigger, "actions": [action]}
    )

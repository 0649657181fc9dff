"""Several projects on one Prefect server."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from db.tables import Identity
from flows.automations import TAG, after_labels, resource_id
from flows.deployments import NAME_TAG, PROJECT_TAG, read_deployments, slug
from flows.serving import claim_names, put_automations, register
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("prefect_server")

SHIPPED = Path(__file__).parents[2] / "configs" / "prefect.yaml"
PAGE = 200
"""Deployments in an answer of the server."""
FLOWS = ["export-queue", "import-labels", "loop", "nightly", "retrain"]
ROADS, TREES = (
    Identity(key=1, id=letter * 32, name=name) for letter, name in (("a", "Roads 1"), ("b", "Trees"))
)


def registered(identity: Identity, folder: Path) -> None:
    read = read_deployments(SHIPPED, config=folder / identity.id / "segcurate.yaml")
    register(read.of(identity), identity)


def deployments_of(tag: str) -> dict[str, DeploymentResponse]:
    with get_client(sync_client=True) as client:
        tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))
        return {one.name: one for one in client.read_deployments(deployment_filter=tagged)}


def matches(name: str) -> tuple[object, UUID]:
    """What the events of the automation for this retraining must match, and the deployment that it starts."""
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(after_labels(name))
    document = automation.model_dump(mode="json")
    return document["trigger"]["match"], UUID(document["actions"][0]["deployment_id"])


def test_two_projects_on_one_server_leave_each_other_alone(tmp_path: Path) -> None:
    registered(ROADS, tmp_path)
    before = deployments_of(PROJECT_TAG + ROADS.id)
    registered(TREES, tmp_path)

    roads, trees = deployments_of(PROJECT_TAG + ROADS.id), deployments_of(PROJECT_TAG + TREES.id)
    assert roads == before
    assert sorted(roads) == [f"{flow}-roads-1" for flow in FLOWS]
    assert sorted(trees) == [f"{flow}-trees" for flow in FLOWS]
    limits = [one.global_concurrency_limit for one in (*roads.values(), *trees.values())]
    assert len({limit.name for limit in limits if limit is not None}) == 2 * len(FLOWS)
    for identity, found in ((ROADS, roads), (TREES, trees)):
        config = str(tmp_path / identity.id / "segcurate.yaml")
        assert {one.parameters["config"] for one in found.values()} == {config}
        retrain = f"retrain-{slug(identity)}"
        expected = {"prefect.resource.id": resource_id(identity.id)}
        assert matches(retrain) == (expected, found[retrain].id)


def test_a_name_of_another_project_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    registered(ROADS, tmp_path)
    before = deployments_of(PROJECT_TAG + ROADS.id)
    twin = Identity(key=1, id="c" * 32, name="roads-1")

    with pytest.raises(UserError, match="belongs to the project 'Roads 1'.* the project 'roads-1'"):
        registered(twin, tmp_path)
    with pytest.raises(UserError, match="belongs to the project 'Roads 1'.* the project 'roads-1'"):
        put_automations(read_deployments(SHIPPED, config=tmp_path / "segcurate.yaml").of(twin), twin)

    assert matches("retrain-roads-1")[0] == {"prefect.resource.id": resource_id(ROADS.id)}
    assert deployments_of(PROJECT_TAG + ROADS.id) == before
    assert deployments_of(PROJECT_TAG + twin.id) == {}


def test_deployments_of_before_the_upgrade_or_of_a_former_name_do_not_run_twice(tmp_path: Path) -> None:
    old = Identity(key=1, id="d" * 32, name="Old name")
    new = Identity(key=1, id=old.id, name="New name")
    config = tmp_path / new.id / "segcurate.yaml"
    for path in (tmp_path / "elsewhere.yaml", config):
        unowned = read_deployments(SHIPPED, config=path)
        if path == config:
            unowned.deployments[:] = unowned.deployments[:4]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flows.serving.claim_names", lambda *_: None)
            register(unowned, old)
    registered(old, tmp_path)

    registered(new, tmp_path)

    assert sorted(deployments_of(PROJECT_TAG + new.id)) == [f"{flow}-new-name" for flow in FLOWS]
    left = [name for name in deployments_of(TAG) if name in FLOWS]
    assert left == ["loop"]  # of another configuration
    with get_client(sync_client=True) as client:
        for former in ("retrain", "retrain-old-name"):
            assert client.read_automations_by_name(after_labels(former)) == []


def test_a_deployment_of_a_former_name_is_found_behind_more_than_a_page_of_others(tmp_path: Path) -> None:
    identity = Identity(key=1, id="f" * 32, name="Many")
    shipped = read_deployments(SHIPPED, config=tmp_path / "segcurate.yaml")
    tags = {name: [PROJECT_TAG + identity.id, NAME_TAG + name] for name in ("Before", "Many")}
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("of many")
        kept = [f"many-{number}" for number in range(PAGE + 5)]
        client.create_deployment(flow, "was-many", tags=tags["Before"])
        made = [client.create_deployment(flow, name, tags=tags["Many"]) for name in kept]

        claim_names(shipped.of(identity), identity)

        left = [known.name for known in client.read_deployments()]
        with pytest.raises(ObjectNotFound):
            client.read_deployment_by_name("of many/was-many")
        assert client.read_deployment_by_name(f"of many/{kept[0]}").id == made[0]
        for known in made:
            client.delete_deployment(known)
    assert len(left) == PAGE


def test_a_project_without_latin_letters_in_its_name_has_a_slug_too() -> None:
    assert slug(Identity(key=1, id="e" * 32, name="道路")) == "e" * 8

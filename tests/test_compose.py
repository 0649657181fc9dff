"""`docker-compose.yml` and the image, checked without an engine: schema, secrets, databases, wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from jsonschema.validators import validator_for

from flows.prefect_server import SERVER_SETTINGS
from tests.db.private_server import PROGRAMS, private_server

ROOT = Path(__file__).parents[1]
SECRETS = ("POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "SEGCURATE_DB_PASSWORD", "PREFECT_AUTH")
_PLACE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def example(**values: str) -> dict[str, str]:
    """.env.example, with these lines filled in."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs} | values


def filled() -> dict[str, str]:
    return example(**{name: f"{name.lower()}xyz" for name in SECRETS}, SEGCURATE_PROJECT="/srv/project")


class Loader(yaml.SafeLoader):
    """Knows Compose's `!reset`, which takes a key away."""


Loader.add_constructor("!reset", lambda loader, node: None)


def compose(environment: dict[str, str], *, file: str = "docker-compose.yml") -> dict[str, Any]:
    """The file as Compose reads it: `${NAME:?message}` without a value is an error, for empty values too."""

    def value(place: re.Match[str]) -> str:
        given = environment.get(place["name"], "")
        if given or place["kind"] is None:
            return given
        if place["kind"] == "?":
            raise KeyError(place["name"])
        return place["rest"]

    text = (ROOT / file).read_text(encoding="utf-8")
    uncommented = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return yaml.load(_PLACE.sub(value, uncommented), Loader)


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    return compose(filled())["services"]


def test_the_file_fits_the_schema_of_the_compose_specification() -> None:
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    check = validator_for(schema)(schema)
    document = compose(filled())
    assert [error.message for error in check.iter_errors(document)] == []
    override = compose(filled(), file="docker-compose.cpu.yml")
    assert [error.message for error in check.iter_errors(override)] == []
    document["services"]["worker"]["restarts"] = "always"
    assert len(list(check.iter_errors(document))) == 1


@pytest.mark.parametrize("missing", [*SECRETS, "SEGCURATE_PROJECT"])
def test_nothing_starts_without_every_secret(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        compose(filled() | {missing: ""})


def test_no_password_stands_in_the_files() -> None:
    values = example()
    assert {name: values[name] for name in SECRETS} == dict.fromkeys(SECRETS, "")
    secrets = {f"{name.lower()}xyz" for name in SECRETS}
    for name, service in compose(filled())["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|AUTH", key) and name != "label-studio":
                assert value in secrets, f"{name}: {key}"


def test_images_have_versions_and_ports_stay_on_this_machine(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert re.fullmatch(r"[\w/-]+:\d+\.\d+[\w.-]*", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "ports" not in services["postgres"]
    assert services["postgres"]["networks"] == ["store"]
    assert compose(filled())["networks"]["store"] == {"internal": True}


def test_every_lasting_service_is_watched_and_started_again(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name == "setup":
            assert service["restart"].startswith("on-failure")
        elif name == "segcurate":  # for `docker compose run`
            assert (service["profiles"], "restart" in service) == (["cli"], False)
        else:
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"][0] == "CMD"
    for name in ("prefect", "setup", "worker", "segcurate"):
        assert services[name]["user"] == "1000:1000"
    assert services["label-studio"]["profiles"] == ["label-studio"]


def test_what_must_outlive_a_container_lies_in_a_volume(services: dict[str, dict[str, Any]]) -> None:
    environment = services["prefect"]["environment"]
    assert {key: environment[key] for key in SERVER_SETTINGS} == SERVER_SETTINGS
    assert f"prefect-home:{environment['PREFECT_HOME']}" in services["prefect"]["volumes"]
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert set(compose(filled())["volumes"]) == {name for name in named if name[0] not in "./"}


def test_label_studio_sees_the_queues_only_and_nobody_signs_up(services: dict[str, dict[str, Any]]) -> None:
    environment = services["label-studio"]["environment"]
    folders = [volume for volume in services["label-studio"]["volumes"] if volume.startswith("/srv/project")]
    assert folders == ["/srv/project/queues:/project/queues:ro"]
    assert environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] == "/project/queues"
    assert environment["LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK"] == "true"
    assert {"LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD"} <= set(example())


def test_only_the_pages_own_origin_may_call_prefect(services: dict[str, dict[str, Any]]) -> None:
    origin = services["prefect"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    assert origin == "http://127.0.0.1:4200"


def test_the_image_has_every_optional_part() -> None:
    assert "[postgres,s3,ray,cvat]" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_what_runs_steps_asks_for_the_gpus_unless_the_machine_has_none(
    services: dict[str, dict[str, Any]],
) -> None:
    without = compose({}, file="docker-compose.cpu.yml")["services"]
    for name in ("worker", "segcurate"):
        devices = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        assert without[name]["deploy"] is None
    assert set(without) == {name for name, service in services.items() if "build" in service}
    assert {service["build"]["args"]["DEVICE"] for service in without.values()} == {"cpu"}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "ARG DEVICE=cuda" in dockerfile
    assert 'if [ "$DEVICE" = cpu ]' in dockerfile


def test_no_container_may_take_the_memory_of_the_others(services: dict[str, dict[str, Any]]) -> None:
    limits = {name: service["mem_limit"] for name, service in services.items()}
    assert set(limits) == set(services)
    running = ("postgres", "prefect", "worker", "label-studio")
    assert sum(int(limits[name].removesuffix("g")) for name in running) <= 16
    changed = compose(filled() | {"WORKER_MEMORY": "100g"})["services"]
    assert changed["worker"]["mem_limit"] == "100g"


def test_every_log_has_an_end(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["logging"] == {
            "driver": "json-file",
            "options": {"max-size": "10m", "max-file": "5"},
        }


def test_downloaded_weights_outlive_a_container(services: dict[str, dict[str, Any]]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name in ("worker", "segcurate"):
        assert "cache:/home/segcurate/.cache" in services[name]["volumes"]
    assert "HOME=/home/segcurate " in dockerfile
    assert "/home/segcurate/.cache &&" in dockerfile  # with the owner and mode that a new volume takes over


def test_client_and_server_share_the_password_and_the_store(services: dict[str, dict[str, Any]]) -> None:
    server = services["prefect"]["environment"]
    for name in ("setup", "worker", "segcurate"):
        client = services[name]["environment"]
        assert client["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
        assert "segcurate_db_passwordxyz@postgres:5432/segcurate" in client["SEGCURATE_DATABASE__URL"]


@pytest.mark.slow
def test_the_init_script_makes_two_databases_that_only_their_owners_enter() -> None:
    with private_server() as server:
        url = server.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            host, port = connection.info.host, connection.info.port
        environment = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "PGHOST": host,
            "PGPORT": str(port),
            "PREFECT_DB_PASSWORD": "it's 1",
            "SEGCURATE_DB_PASSWORD": "two",
        }
        script = ROOT / "configs" / "postgres-init.sh"
        subprocess.run(["sh", str(script)], env=environment, check=True, capture_output=True)
        with psycopg.connect(url) as connection:
            owners = connection.execute(
                "SELECT datname, pg_get_userbyid(datdba), has_database_privilege('prefect', oid, 'CONNECT'),"
                " has_database_privilege('segcurate', oid, 'CONNECT')"
                " FROM pg_database WHERE datname IN ('prefect', 'segcurate') ORDER BY datname"
            ).fetchall()
            superusers = connection.execute(
                "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname IN ('prefect', 'segcurate')"
            ).fetchall()
    assert owners == [("prefect", "prefect", True, False), ("segcurate", "segcurate", False, True)]
    assert superusers == []


@pytest.mark.slow
def test_the_wheel_brings_the_deployments_and_templates_along(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "flows/prefect.yaml" in names
    assert "pipeline/report/templates/page.css" in names
    assert "db/migrations/versions/0001_the_first_schema.py" in names

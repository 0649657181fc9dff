"""A project's folder that holds modules of our packages' names: nothing imports them. `make test-prefect`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.house import House, add_images, make_project, wait_for

pytestmark = pytest.mark.timeout(900)

FOREIGN = (
    "db.py",
    "pipeline/__init__.py",
    "flows/__init__.py",
    "prefect.py",
    "yaml.py",
    "numpy.py",
    "torch.py",
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    house.project.mkdir()
    make_project(house.project)
    for name in FOREIGN:
        file = house.project / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"import sys\nopen({str(marker(house))!r}, 'a').write(f'{{__name__}}: {{sys.orig_argv}}\\n')\n"
        )
    try:
        yield house
    finally:
        house.leave()


def marker(house: House) -> Path:
    """The file in which a foreign module writes that it was imported."""
    return house.folder / "imported.txt"


def assert_none_imported(house: House) -> None:
    assert not marker(house).exists(), marker(house).read_text()


def test_commands_import_nothing_from_the_working_directory(house: House) -> None:
    add_images(house.project, 2, name="commands")
    for command in ("status", "nightly"):
        house.run("segcurate", command)
    assert_none_imported(house)


def test_the_night_of_serve_imports_nothing_from_the_project(house: House) -> None:
    house.start(
        "serve", "segcurate", "serve", "--port", str(house.port), with_api=False,
        more={"PREFECT_HOME": os.path.relpath(house.folder / "served", house.project)},
    )  # fmt: skip
    house.wait_for_server()
    wait_for("deployments", lambda: len(house.ask("deployments/filter")) == 5, seconds=120)
    add_images(house.project, 2, name="served")
    end = house.ended(house.begin("nightly"), seconds=240)
    house.processes["serve"].terminate()
    house.processes["serve"].wait(60)

    assert end["type"] == "COMPLETED", end
    assert "2 scored" in end["message"]
    assert_none_imported(house)


def test_the_night_of_a_worker_in_the_folder_imports_nothing_from_the_project(house: House) -> None:
    (house.project / ".segcurate" / "prefect-password").unlink()
    house.start_server()
    house.run("segcurate", "deploy")
    house.start_worker()
    add_images(house.project, 2, name="worked")
    end = house.ended(house.begin("nightly"), seconds=240)

    assert end["type"] == "COMPLETED", end
    assert "2 scored" in end["message"]
    assert_none_imported(house)

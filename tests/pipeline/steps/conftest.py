from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from db.engine import Database
from pipeline.data.project import Project
from pipeline.steps.export import export
from tests.pipeline.labeling.exported_project import Exported, make_project


@pytest.fixture(scope="session")
def selected_once(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = make_project(tmp_path_factory.mktemp("selected"))
    made.database.close()
    return made


@pytest.fixture(scope="session")
def exported_once(selected_once: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = copy_of(selected_once, tmp_path_factory.mktemp("exported") / "project")
    export(made.project, made.database)
    made.database.close()
    return made


@pytest.fixture
def selected(selected_once: Exported, tmp_path: Path) -> Exported:
    """A project whose queue is selected and not exported yet."""
    return copy_of(selected_once, tmp_path / "project")


@pytest.fixture
def exported(exported_once: Exported, tmp_path: Path) -> Exported:
    """A project whose queue is exported: masks can come back."""
    return copy_of(exported_once, tmp_path / "project")


@pytest.fixture
def folder(exported: Exported) -> Path:
    """The exported folder."""
    return exported.project.root / "queues" / "round-01"


def copy_of(made: Exported, root: Path) -> Exported:
    shutil.copytree(made.project.root, root, symlinks=True)
    project = Project(config=made.project.config, root=root)
    return Exported(project=project, database=Database(project.database_url), truth=made.truth)

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.steps.export import export
from tests.pipeline.labeling.exported_project import Exported, make_exported


@pytest.fixture(scope="session")
def selected_once(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = make_exported(tmp_path_factory.mktemp("selected"))
    made.database.close()
    return made


@pytest.fixture(scope="session")
def exported_once(selected_once: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = selected_once.copied_to(tmp_path_factory.mktemp("exported") / "project")
    export(made.project, made.database)
    made.database.close()
    return made


@pytest.fixture
def selected(selected_once: Exported, tmp_path: Path) -> Exported:
    """A project whose queue is selected and not exported yet."""
    return selected_once.copied_to(tmp_path / "project")


@pytest.fixture
def exported(exported_once: Exported, tmp_path: Path) -> Exported:
    """A project whose queue is exported: masks can come back."""
    return exported_once.copied_to(tmp_path / "project")


@pytest.fixture
def folder(exported: Exported) -> Path:
    """The exported folder."""
    return exported.project.root / "queues" / "round-01"

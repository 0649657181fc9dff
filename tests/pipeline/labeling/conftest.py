from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.labeling.exported_project import Exported, make_project


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Exported]:
    """A project whose queue is selected and not exported yet."""
    made = make_project(tmp_path / "project")
    yield made
    made.database.close()

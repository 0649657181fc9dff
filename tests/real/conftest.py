from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.real.label_studio_server import RunningLabelStudio, executable, label_studio


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningLabelStudio]:
    """One server for all tests: it takes a minute or two to start."""
    command = executable()
    assert command is not None
    with label_studio(command, tmp_path_factory.mktemp("label-studio")) as running:
        yield running

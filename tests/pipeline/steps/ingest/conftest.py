from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.steps.ingest.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def five(folder: Folder) -> Folder:
    """Five groups of two images with masks, of which `test.txt` and `calibration.txt` hold one out each."""
    for group in "abcde":
        folder.sequence(group, 2)
    folder.write("test.txt", "a/f0.png", "a/f1.png")
    folder.write("calibration.txt", "b/f0.png", "b/f1.png")
    return folder

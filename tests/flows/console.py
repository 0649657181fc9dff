"""The console script in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import cli


class Console:
    """The console script in a project's folder, on a wide terminal."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        patch.chdir(folder)
        patch.setattr("flows.cli.display.console.width", 220, raising=False)
        self.folder, self.patch, self.capture = folder, patch, capture

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; on standard error where it fails with 1."""
        self.patch.setattr(sys, "argv", ["segcurate", *arguments])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        output, errors = self.capture.readouterr()
        assert int(end.value.code or 0) == code, errors
        return errors if code == 1 else output

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

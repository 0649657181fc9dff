"""A run's flow comes from the installed package, not from the project's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flows.import_path import SAFE_PATH

LOADED = """
import os
from flows.import_path import outside_project
from prefect.utilities.importtools import load_module
with outside_project():
    print(load_module("flows.deployments").__file__)
print(os.getcwd())
"""


def test_prefect_loads_flows_from_the_installed_package(tmp_path: Path) -> None:
    (tmp_path / "db.py").write_text("raise SystemExit('db.py of the project')")
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded, folder = done.stdout.split()
    assert Path(loaded) == Path(__file__).parents[2] / "flows" / "deployments.py"
    assert Path(folder) == tmp_path


def environment() -> dict[str, str]:
    return os.environ | SAFE_PATH | {"PYTHONPATH": str(Path(__file__).parents[2])}


# DEL return {**SAFE_PATH, "PYTHONPATH": str(Path(__file__).parents[2])}

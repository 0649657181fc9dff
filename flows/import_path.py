"""Where Python looks for modules: never in the project's folder, which may hold a `db.py` of its own.

Python puts the working directory before the installed packages for `python -m …` and for spawned processes;
Prefect does the same for the flow of each run, and Ray for its workers.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import chdir, contextmanager

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""The environment of processes that do not import from their working directory by themselves."""


@contextmanager
def outside_project() -> Generator[None]:
    """Work in the root of the file system, where no modules lie, and start processes there.

    A folder of the installed packages would not do: Python would look for its own modules in it.
    """
    with chdir(os.path.abspath(os.sep)):
        yield

"""Commands as processes of their own, each a fork of one that has imported everything and done nothing.

The import of torch costs a process several seconds, a fork some milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import forkserver, get_context
from pathlib import Path

from flows import cli
from flows.cli.display import console
from flows.cli.display import errors as error_console

IMPORTED_BY_COMMANDS = [
    __name__,
    "pipeline.operation.played_labels",
    "pipeline.steps.export",
    "pipeline.steps.import_labels",
    "pipeline.steps.ingest",
    "pipeline.steps.sync",
    "pipeline.summaries.rounds",
]


class Command:
    """A started `segcurate …`.

    Args:
        folder: the working directory.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_BY_COMMANDS)
        forkserver.ensure_running()
        self._output, self._errors = folder / "output.txt", folder / "errors.txt"
        self.process = context.Process(target=_run, args=(folder, self._output, self._errors, arguments))
        self.process.start()

    def end(self, *, within: float) -> int:
        """Wait for the end, after so many seconds kill it; the exit code, negative for a signal."""
        self.process.join(within)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8")


def _run(folder: Path, output: Path, errors: Path, arguments: tuple[str, ...]) -> None:
    for path, number in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    console.width = error_console.width = 200
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    sys.argv = ["segcurate", *arguments]
    cli.main()

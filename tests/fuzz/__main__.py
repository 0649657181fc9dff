"""The fuzzing run: cases by their numbers, so that each of them can be had again."""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pipeline.errors import UserError
from tests.fuzz.sources import materialise, mutated
from tests.fuzz.targets import Target, targets

SLOW_SECONDS = 2.0
HANGING_SECONDS = 20
LARGE_BYTES = 256 << 20
"""By which one case may raise the peak of the process's memory."""
MOST_ALIKE = 3
"""Findings of one kind that are kept."""


class Hanging(BaseException):
    """A case does not come to an end; no reader catches this."""


@dataclass
class Tally:
    """What has become of a target's cases."""

    read: int = 0
    rejected: int = 0
    masks: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        return self.read + self.rejected + self.findings.total()


def run_case(target: Target, number: int, *, seed: int, tally: Tally, keep: Path | None) -> None:
    """Make a case, read it, and note what becomes of it. The first cases are valid sources."""
    chance = random.Random(f"{seed} {target.name} {number}")
    valid = target.seeds[number % len(target.seeds)]
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        hostile = number >= len(target.seeds)
        files = mutated(valid.files, chance) if hostile else valid.files
        source = materialise(
            files, Path(folder), shape=valid.shape, main=valid.main, chance=chance if hostile else None
        )
        peak, start = _peak(), time.perf_counter()
        kind = told = None
        try:
            signal.alarm(HANGING_SECONDS)
            tally.masks += target.run(source)
            tally.read += 1
        except UserError:
            tally.rejected += 1
        except (Exception, Hanging) as error:
            kind, told = _kind(error), traceback.format_exc()
        finally:
            signal.alarm(0)
        elapsed = time.perf_counter() - start
        tally.seconds += elapsed
        tally.slowest = max(tally.slowest, elapsed)
        if kind is None and elapsed > SLOW_SECONDS:
            kind = "slow"
        if kind is None and _peak() - peak > LARGE_BYTES:
            kind = f"it takes {(_peak() - peak) >> 20} MiB"
        if kind is not None:
            tally.findings[kind] += 1
            if keep is not None and tally.findings[kind] <= MOST_ALIKE:
                _keep(keep / f"{target.name} {number}".replace(" ", "-"), source, told or kind)


def _kind(error: BaseException) -> str:
    """The exception, and the last line of ours that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipeline/" in frame.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {str(error)[:80]!r}"


def _keep(folder: Path, source: Path, told: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "finding.txt").write_text(told, errors="backslashreplace")
    if source.is_dir():
        shutil.copytree(source, folder / source.name, symlinks=True, ignore=_pipes, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, folder / source.name)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]


def _fast() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise Hanging


def main(arguments: list[str] | None = None) -> int:
    """Run cases; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; can be given again")
    parser.add_argument("--case", type=int, help="only this number")
    parser.add_argument("--keep", type=Path, help="a folder for what was found")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGALRM, _hang)
    chosen = [target for target in targets() if not options.target or target.name in options.target]
    tallies = {target.name: Tally() for target in chosen}
    numbers = range(-(-options.cases // max(len(chosen), 1))) if options.case is None else [options.case]
    start = time.perf_counter()
    for number in numbers:
        for target in chosen:
            run_case(target, number, seed=options.seed, tally=tallies[target.name], keep=options.keep)
    for name, tally in tallies.items():
        print(
            f"{name}: {tally.cases} cases, {tally.read} read, {tally.rejected} rejected whole, "
            f"{tally.masks} masks or items, {tally.seconds:.0f} s, slowest {tally.slowest:.2f} s"
        )
        for kind, count in tally.findings.most_common():
            print(f"  FOUND {count} times: {kind}")
    cases = sum(tally.cases for tally in tallies.values())
    found = sum(tally.findings.total() for tally in tallies.values())
    print(
        f"{cases} cases in {time.perf_counter() - start:.0f} s, seed {options.seed}: {found} findings; "
        f"peak memory {_peak() >> 20} MiB."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Killed at any moment and run again, a flow leaves what it would have left if nobody had killed it.

`-k 07-sqlite` repeats the seventh case alone, and `SEGCURATE_KILL_SEED` draws other moments. At the end a
table says where each kill hit.
"""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Lease, Model, Queue, Round, Shard
from tests.real.kill.cases import Case, all_cases
from tests.real.kill.comparison import differences, leftovers
from tests.real.kill.conftest import EVERY, OUTCOMES, SEED, Bench, Copy, Outcome
from tests.real.kill.moments import Place
from tests.real.kill.victims import Ended

TRIES = 4
"""A run that was faster than the moment at which it should die is tried again, to die earlier."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "case", all_cases(SEED)[::EVERY], ids=lambda case: f"{case.number:02d}-{case.backend}-{case.work}"
)
def test_a_killed_flow_that_is_run_again_leaves_what_an_undisturbed_one_leaves(
    case: Case, bench: Bench
) -> None:
    reference, seconds = bench.end_of(case.backend, case.start, case.work)
    project, hits, spent = _killed(bench, case, seconds)
    again = bench.run(case.again, project)  # the schedule of nights alone also finishes a retraining
    with project.engine() as engine, reference.engine() as other:
        found = differences(engine, project.root, other, reference.root)
    found += [f"left over: {name}" for name in leftovers(project.root)]
    OUTCOMES.append(Outcome(str(case), hits, spent, again.seconds, len(found)))
    assert not found, "\n".join(found)
    bench.forget(project)


def _killed(bench: Bench, case: Case, seconds: float) -> tuple[Copy, list[str], float]:
    """A project in which the flow was killed at each of the case's moments, and where that was."""
    for attempt in range(TRIES):
        project = bench.copy(bench.start_of(case.backend, case.start))
        hits: list[str] = []
        spent = 0.0
        for moment in case.moments:
            sooner = seconds * 0.8**attempt
            ended = _kill(bench, case, project, moment, sooner)
            spent += ended.seconds
            if not ended.killed:
                break
            hits.append(f"{ended.marker or f'at {ended.seconds:.2f} s'}: {where(project)}")
        else:
            return project, hits, spent
        if ended.code != 0:
            pytest.fail(f"The victim failed by itself:\n{(project.root / 'victim.log').read_text()[-6000:]}")
        if isinstance(moment, Place):
            pytest.fail(f"The work never came to this place: {moment}.")
        bench.forget(project)
    pytest.fail(f"The work was done before it could be killed, {TRIES} times.")


def _kill(bench: Bench, case: Case, project: Copy, moment: Place | float, seconds: float) -> Ended:
    if isinstance(moment, Place):
        return bench.victims.run(case.work, project.root, place=moment, url=project.url)
    return bench.victims.run(case.work, project.root, kill_after=moment * seconds, url=project.url)


def where(project: Copy) -> str:
    """How far the work had come, by what the database says."""
    with project.engine() as engine, Session(engine) as session:
        rounds = session.scalars(select(Round).order_by(Round.number.desc()).limit(1)).all()
        models = session.scalars(select(Model).order_by(Model.id.desc()).limit(1)).all()
        shards = [shard.status for shard in session.scalars(select(Shard))]
        queues = session.scalars(select(Queue.name)).all()
        leases = session.scalars(select(Lease.name)).all()
    told = [f"round {one.number} {one.state}" for one in rounds]
    told += [f"{one.name} {one.status}" for one in models]
    told += [
        f"{shards.count(name)} shards {name}" for name in ("done", "running", "pending") if name in shards
    ]
    told += [f"{len(queues)} queues"] + [f"lease {name!r}" for name in leases]
    return ", ".join(told)

"""The state machine of a round: train → calibrate → evaluate → score → select → export → import.

A project without labels begins with round 0, which has no model: select → export → import. Its labels open
round 1.

A round's `state` is the step that comes next. A step that has just run may be run again, and replaces its
result, until the step after it has run. A step calls `require` before its work, and `advance` in the same
transaction that writes its result, so a kill leaves the round either before the step or after it.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from db.queries import models, queue_items, queues, rounds
from db.tables import Round, utc_now
from pipeline.errors import NotYourTurn

WITHOUT_MODEL = 0
"""The number of the round whose queue is chosen without scores."""

Step = Literal["train", "calibrate", "evaluate", "score", "select", "export", "import"]
STEPS: tuple[Step, ...] = ("train", "calibrate", "evaluate", "score", "select", "export", "import")

ALLOWED: dict[Step, frozenset[str]] = {step: frozenset(STEPS[at : at + 2]) for at, step in enumerate(STEPS)}
ALLOWED["train"] = frozenset({"train"})
"""The states of a round in which a step may run. A trained model is not trained again."""


_BEFORE_A_QUEUE = (
    " `import` takes the labels of an exported queue. `ingest` takes labels that exist already: mask files "
    "by `data.masks`, and files of a labeling tool by `data.labels`, which `segcurate init --from` writes."
)


def require(session: Session, step: Step, *, preview: bool = False) -> Round:
    """The current round, if the step may run now.

    Args:
        preview: nothing is written, so that `select` may also show what it would choose while a queue is out.

    Raises:
        NotYourTurn: there is no round yet, or another step comes next.
    """
    current = rounds.current_round(session)
    if current is None:
        raise NotYourTurn(
            f"`segcurate {step}` cannot run yet: no image of the project is known.",
            f"Run `segcurate ingest`.{_BEFORE_A_QUEUE if step == 'import' else ''}",
        )
    if current.state not in ALLOWED[step] and not (preview and current.state == "import"):
        raise NotYourTurn(
            f"`segcurate {step}` cannot run now: in round {current.number}, "
            f"`segcurate {current.state}` comes next.",
            f"Run `segcurate {current.state}`.{_BEFORE_A_QUEUE if step == 'import' else ''}",
        )
    return current


def advance(session: Session, current: Round, step: Step) -> None:
    """Move the round to the step after `step`; after `import`, close it and open the next one."""
    if step == "import":
        current.state = "closed"
        current.closed_at = utc_now()
        rounds.open_round(session, number=current.number + 1, state="train")
    else:
        current.state = STEPS[STEPS.index(step) + 1]
    session.flush()


def close(session: Session, current: Round) -> int:
    """End the round with the labels that were imported, and open the next one. Round 0 goes on with another
    queue where nothing is labeled yet: there is nothing to train on.

    Returns:
        The number of regions of its queue that were released without a label.
    """
    if current.number == WITHOUT_MODEL and not models.training_labels(session):
        return reopen(session, current)
    released = _release(session, current)
    advance(session, current, "import")
    return released


def reopen(session: Session, current: Round) -> int:
    """Withdraw the active queue, so that the round selects another one.

    The old queue no longer belongs to a round. Its folder stays, and its masks are still imported.

    Returns:
        The number of its regions that were released.
    """
    released = _release(session, require(session, "import"))
    queue = queues.round_queue(session, current.id)
    if queue is not None:
        queue.round_id = None
    current.state = "select"
    session.flush()
    return released


def open_first(session: Session) -> Round | None:
    """Round 1, when there is none yet. Called by `ingest` once there are labels to train on.

    Round 0 ends with it if its queue is not exported yet, and the draft of that queue is dropped: the labels
    that are there are enough to begin with.
    """
    current = rounds.current_round(session)
    if current is None:
        return rounds.open_round(session, number=WITHOUT_MODEL + 1, state="train")
    if current.number == WITHOUT_MODEL and current.state in ("select", "export"):
        queues.drop_draft(session, current.id)
        advance(session, current, "import")
        return rounds.current_round(session)
    return None


def open_without_labels(session: Session) -> Round | None:
    """Round 0, when there is no round yet. Called by `ingest` where there are images, and no labels."""
    if rounds.current_round(session) is not None:
        return None
    return rounds.open_round(session, number=WITHOUT_MODEL, state="select")


def _release(session: Session, current: Round) -> int:
    """Release the regions that wait for a label in the round's queue."""
    queue = queues.round_queue(session, current.id)
    if queue is None:
        return 0
    waiting = [item.id for item in queue_items.queue_items(session, queue.id, status="queued")]
    queue_items.set_status(session, item_ids=waiting, status="released")
    return len(waiting)

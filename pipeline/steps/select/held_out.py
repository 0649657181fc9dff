"""Select held-out images: a queue of whole images whose labels make a split to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as image_queries
from db.queries import queue_items, queues
from db.queries.candidates import WHOLE_IMAGE
from db.tables import Queue
from pipeline.data.project import Project
from pipeline.data.splits import HeldOut
from pipeline.errors import NothingLeft, NotYourTurn
from pipeline.format import count, counted
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.steps.ingest.splits import (
    NEIGHBOURS_ARE_ONE,
    draw_to_label,
    lock_project,
    note_open_splits,
    release_held_out,
)

SHOWN_IMAGES = 10


@dataclass(frozen=True)
class HeldOutReport:
    """A queue of held-out images.

    Attributes:
        uris: of the images to label, in order.
        by: what was drawn for it: `group`, `block`, or `image` where a block is one.
        units: so many of them.
        held, guards: images that left the pool for it, those to label included.
        evidence: the most independent units that the split has once they are labeled, of the `needed` ones.
        neighbours: whether neighbours in a sequence are one unit.
    """

    name: str
    split: str
    uris: list[str]
    by: str
    units: int
    held: int
    guards: int
    wanted: int | None
    evidence: int
    needed: int
    neighbours: bool

    def lines(self) -> list[str]:
        """The report as text."""
        units = "" if self.by == "image" else f" of {counted(self.units, self.by)}"
        apart = f", and {counted(self.guards, 'neighbour')} of them" if self.guards else ""
        lines = [
            f"{self.name}: {counted(len(self.uris), 'image')} drawn to be labeled for {self.split}.",
            f"{counted(self.held, 'image')}{units} left the pool for it{apart}: no model is trained on them.",
        ]
        lines += [f"  {rank:4d}  {uri}" for rank, uri in enumerate(self.uris[:SHOWN_IMAGES], 1)]
        if len(self.uris) > SHOWN_IMAGES:
            lines.append(f"  … and {count(len(self.uris) - SHOWN_IMAGES)} more")
        if self.wanted is not None and len(self.uris) < self.wanted:
            lines.append(
                f"warning: Only {counted(len(self.uris), 'image')} could be drawn: at most half of all "
                f"{self.by}s are held out, and none with an image that is labeled or queued."
            )
        if self.evidence < self.needed:
            why = f": {NEIGHBOURS_ARE_ONE}" if self.neighbours and self.evidence < len(self.uris) else ""
            lines.append(
                f"warning: Once they are labeled, the {self.split} split has at most {count(self.evidence)} "
                f"of the {count(self.needed)} independent units that it needs{why}. Ask for more images with "
                "`--budget`, or lower `splits.minimum_units`, before anybody draws masks."
            )
        return lines

    def document(self) -> dict[str, Any]:
        """The report for JSON."""
        return vars(self)


@one_at_a_time("ingest")
def select_held_out(
    project: Project,
    database: Database,
    *,
    split: HeldOut,
    budget: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> HeldOutReport:
    """Draw images for a held-out split, and store the queue that asks for their labels.

    They leave the pool at once. Run again before the export, it draws again in place of the former draw.

    Args:
        budget: images to label; by default one for each unit that `splits.minimum_units` still lacks.
        dry_run: store nothing.

    Raises:
        NotYourTurn: no image is known, or such a queue is out and waits for labels.
        NothingLeft: no image can be held out.
        ConfigError: groups are to be drawn, and there is only one.
    """
    spec = getattr(project.config.splits, split)
    by = "image" if spec.by == "block" and spec.block == 1 else spec.by
    with database.session() as session:
        if image_queries.project_row(session) is None:
            raise NotYourTurn("No image of the project is known yet.", "Run `segcurate ingest`.")
        lock_project(session, project)
        turn = _drop_draft(session, split)
        drawn = draw_to_label(session, project, split, wanted=budget, turn=turn)
        if not drawn.to_label:
            raise NothingLeft(
                f"No image can be held out for the {split} split: at most half of all {by}s are held out, "
                "and none with an image that is labeled or queued.",
                "Add images and run `segcurate ingest`"
                + ("." if by == "image" else f", or use smaller {by}s (`splits.{split}`)."),
            )
        name = f"{split}-{turn + 1:02d}"
        rows = {row.id: row for row in image_queries.images_by_id(session, drawn.to_label)}
        items = [
            {
                "rank": rank,
                "image_id": image_id,
                "region_index": WHOLE_IMAGE,
                "x": 0,
                "y": 0,
                "w": rows[image_id].width,
                "h": rows[image_id].height,
                "slice": "held_out",
                "reason": f"Drawn at random for the {split} split: no model is trained on it.",
            }
            for rank, image_id in enumerate(drawn.to_label, 1)
        ]
        report = HeldOutReport(
            name=name,
            split=split,
            uris=[rows[image_id].uri for image_id in drawn.to_label],
            by=by,
            units=drawn.units,
            held=len(drawn.held),
            guards=len(drawn.guards),
            wanted=budget,
            evidence=drawn.evidence,
            needed=project.config.splits.minimum_units,
            neighbours=not project.config.data.independent,
        )
        if dry_run:
            session.rollback()
        else:
            told = {"split": split, "held": drawn.held, "guards": drawn.guards}
            queues.put_held_out(session, name=name, seed=project.config.splits.seed, spec=told, items=items)
            note_open_splits(session, project)
    return report


def _drop_draft(session: Session, split: str) -> int:
    """Undo the draw of a queue that was not exported. Returns how many queues of the split are left.

    Raises:
        NotYourTurn: the newest queue of the split is out and waits for labels.
    """
    known = [queue for queue in queues.held_out_queues(session) if queue.spec["split"] == split]
    if known and known[-1].exported_at is None and not _is_begun(session, known[-1]):
        draft = known.pop()
        queues.delete_queue(session, draft.id)
        release_held_out(session, [*draft.spec["held"], *draft.spec["guards"]])
    elif known and (waiting := queue_items.count_items(session, known[-1].id).get("queued", 0)):
        raise NotYourTurn(
            f"{known[-1].name} is out, and waits for labels: {counted(waiting, 'image')}.",
            f"Label them, and run `segcurate import {known[-1].export_uri or 'FOLDER'}`; with `--close` it "
            "ends the queue with what is there.",
        )
    return len(known)


def _is_begun(session: Session, queue: Queue) -> bool:
    return set(queue_items.count_items(session, queue.id)) != {"queued"}

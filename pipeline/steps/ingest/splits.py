"""The held-out splits grow by versions: which images join now, and what a split without a version needs.

A held-out image without a version waits: it is neither trained on nor measured on. All waiting images with a
mask join the next version together. An image that a model may have learned from is never held out. Until a
model is trained, the labels of the queue `initial` may be withdrawn for a split, and are then planned anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.queries import images as image_queries
from db.queries import labels, queue_items, queues
from db.tables import utc_now
from pipeline.config import HeldOutSplit, ProjectConfig
from pipeline.data.project import Project
from pipeline.data.splits import ORDER, POOL, TEST, Flags, HeldOut, Images, plan_splits
from pipeline.data.splits import draw_to_label as plan_to_label
from pipeline.errors import ConfigError
from pipeline.evaluation.units import Runs
from pipeline.format import UNIT, count, counted

NEIGHBOURS_ARE_ONE = (
    "neighbours in a sequence are one unit, unless `data.independent: true` says that they do not resemble "
    "each other"
)


def lock_project(session: Session, project: Project) -> None:
    """Lock what must not change any more once there are masks or a queue: classes, channels, groups and
    positions of the images, and the splits. Does nothing to a project that is locked."""
    config, row = project.config, image_queries.project_row(session)
    if row is not None and row.splits_locked_at is None:
        row.splits_locked_at = utc_now()
        row.splits_config = config.splits.model_dump(mode="json")
        row.class_names, row.channels = config.data.class_names, config.data.channels


def grow_splits(session: Session, project: Project, *, unlearned: int | None = None) -> tuple[str, ...]:
    """Make the next version of each held-out split that can have one, in the caller's transaction.

    The first version needs `splits.minimum_units` independent units with masks; with `splits.every_class`,
    each class is in one of the masks.

    Args:
        unlearned: the id of the queue `initial`, where no model was trained on its labels: they keep no image
            from being held out, and are deleted where a split changes. The caller plans them anew.

    Returns:
        A sentence for each new version.

    Raises:
        ConfigError: see `plan_splits`; or nothing is labeled, and a split could not be drawn although there
            are enough masks.
    """
    versions = _versions(session)
    evidence = _Evidence(session, project.config, unlearned=unlearned)
    first = not labels.all_labeled_images(session)
    before = evidence.images.splits
    splits = plan_splits(project.config.splits, evidence.images, versions=versions, enough=evidence.is_enough)
    changed = splits != before
    if changed.any():
        image_queries.set_splits(session, evidence.columns.ids[changed], splits[changed])
        if unlearned is not None:
            withdraw_initial(session, unlearned)
    image_queries.link_duplicates(session)
    evidence = _Evidence(session, project.config)
    grown: list[str] = []
    for name, code in ORDER:
        usable = evidence.usable(code)
        waiting = usable & ~evidence.columns.measured
        if waiting.any() and (versions[name] or evidence.is_enough(usable)):
            version = versions[name] + 1
            image_queries.set_split_version(session, evidence.columns.ids[waiting].tolist(), version)
            images, new = (int(rows.sum()) for rows in (usable, waiting))
            what = "new or corrected" if version > 1 else "new"
            grown.append(
                f"The {name} split is at version {version}: {counted(images, 'image')} with masks, "
                f"{count(new)} of them {what}, in at most {counted(evidence.units(usable), UNIT)}."
            )
        elif first and not versions[name]:
            _refuse_to_learn_from_all(project.config, name, code, evidence)
    return tuple(grown)


def withdraw_initial(session: Session, queue_id: int) -> None:
    """Delete the queue `initial` with its labels, so that `label_initial` plans them anew."""
    labels.delete_labels(session, queue_id=queue_id)
    queues.delete_queue(session, queue_id)


@dataclass(frozen=True)
class HeldOutDraw:
    """Images that were held out to be labeled.

    Attributes:
        to_label: the ids of those that are to be labeled, in order.
        held, guards: the ids of the images that were put into the split for it, and beside them.
        units: groups or blocks that were drawn.
        evidence: the most independent units that the split has once they are labeled.
    """

    to_label: list[int]
    held: list[int]
    guards: list[int]
    units: int
    evidence: int


def draw_to_label(
    session: Session, project: Project, name: HeldOut, *, wanted: int | None, turn: int
) -> HeldOutDraw:
    """Hold out images without masks for a split, in the caller's transaction; see
    `pipeline.data.splits.draw_to_label`.

    Args:
        wanted: images to label; None for one of each unit that `splits.minimum_units` asks for.
    """
    evidence, code = _Evidence(session, project.config), dict(ORDER)[name]
    ids, before, least = evidence.columns.ids, evidence.images.splits, project.config.splits.minimum_units
    if wanted is None:
        known = evidence.units(evidence.usable(code))
        wanted = least - known if known < least else least
    asked_for = list(queue_items.queued_images(session) | labels.all_labeled_images(session))
    lacking = ~evidence.images.has_mask & ~np.isin(ids, asked_for) & (evidence.columns.originals == ids)
    drawn = plan_to_label(
        project.config.splits, name, evidence.images, lacking=lacking, wanted=wanted, turn=turn
    )
    changed = drawn.splits != before
    if changed.any():
        image_queries.set_splits(session, ids[changed], drawn.splits[changed])
        image_queries.link_duplicates(session)
    held = changed & (drawn.splits == code)
    return HeldOutDraw(
        to_label=ids[drawn.rows].tolist(),
        held=ids[held].tolist(),
        guards=ids[changed & ~held].tolist(),
        units=drawn.units,
        evidence=evidence.units(evidence.usable(code) | np.isin(np.arange(len(ids)), drawn.rows)),
    )


def release_held_out(session: Session, image_ids: Sequence[int]) -> None:
    """Put images without a mask back into the pool that were held out, or are guards, for a queue that never
    went out."""
    rows = image_queries.images_by_id(session, image_ids)
    ids = np.array([row.id for row in rows if row.mask_uri is None], dtype=np.int64)
    image_queries.set_splits(session, ids, np.zeros(len(ids), dtype=np.uint8))
    image_queries.link_duplicates(session)


def note_open_splits(session: Session, project: Project) -> dict[str, str]:
    """Store what the held-out splits without a version still need."""
    row, missing = image_queries.project_row(session), open_splits(session, project)
    if row is not None and (row.open_splits or {}) != missing:
        row.open_splits = missing
    return missing


def open_splits(session: Session, project: Project) -> dict[str, str]:
    """What each held-out split without a version still needs and what to do, as a sentence."""
    versions = _versions(session)
    if all(versions.values()):
        return {}
    evidence = _Evidence(session, project.config, unlearned=labels.unlearned_initial(session))
    return {name: _needs(project.config, name, code, evidence) for name, code in ORDER if not versions[name]}


def _versions(session: Session) -> dict[HeldOut, int]:
    known = image_queries.split_versions(session)
    return {name: known[name] for name, _ in ORDER}


class _Evidence:
    """The images as columns; counts the independent units and the classes of those with masks.

    Args:
        unlearned: the id of a queue whose labels and items do not keep an image from being held out.
    """

    def __init__(self, session: Session, config: ProjectConfig, *, unlearned: int | None = None) -> None:
        self._session, self._config = session, config
        self.columns = columns = image_queries.split_columns(session)
        labeled, queued = (
            np.isin(columns.originals, np.fromiter(ids, dtype=np.int64, count=len(ids)))
            for ids in (
                labels.all_labeled_images(session, except_queue_id=unlearned),
                queue_items.queued_images(session, except_queue_id=unlearned),
            )
        )
        self.images = Images(
            groups=columns.groups,
            positions=columns.positions,
            splits=columns.splits,
            has_mask=columns.has_mask,
            labeled=labeled,
            taken=(labeled | queued) & ~np.isin(columns.splits, [code for _, code in ORDER]),
        )
        self._shown: npt.NDArray[np.bool_] | None = None

    def usable(self, code: int) -> Flags:
        """The images of a split, bool [N], that have a mask and are no copies."""
        columns = self.columns
        return (columns.splits == code) & columns.has_mask & (columns.originals == columns.ids)

    def candidates(self, spec: HeldOutSplit, code: int) -> Flags:
        """The images with masks, bool [N], that may be in a version of a split, or are in it."""
        usable = self.usable(code)
        if spec.fraction is None:
            return usable
        return usable | self.images.has_mask & ~self.images.taken & (self.images.splits == POOL)

    def more_units(self, spec: HeldOutSplit, code: int) -> int:
        """The independent units with masks that are missing for the first version of a split."""
        least = self._config.splits.minimum_units
        more = least - self.units(self.candidates(spec, code))
        if spec.fraction is None:
            return more
        known = self.units(self.images.has_mask | self.images.labeled)
        held = self.units(self.images.has_mask & np.isin(self.images.splits, [code for _, code in ORDER]))
        first = least if self.is_after_test(code) else 0
        lacking = max(0, least - self.units(self.usable(code)))
        return max(more + first, 2 * (held + first + lacking) - known)

    def is_after_test(self, code: int) -> bool:
        """Whether this is the calibration split, and the test split is still to be drawn before it."""
        drawn = self._config.splits.test.fraction is not None
        return code != TEST and drawn and not (self.images.splits == TEST).any()

    def how_to_label(self, name: HeldOut) -> str:
        """How images of a split get labels: those of its queue that waits for them, or of a new one."""
        for queue in queues.held_out_queues(self._session):
            if queue.spec["split"] == name and queue_items.count_items(self._session, queue.id).get("queued"):
                return f"Label the images of {queue.name}"
        return f"Draw images to label with `segcurate select --for {name}`"

    def units(self, wanted: Flags) -> int:
        """The most independent units that these images, bool [N], can be in an evaluation."""
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return 0
        runs = Runs.of(
            [self.columns.names[group] for group in self.columns.groups[rows]],
            self.columns.positions[rows].tolist(),
            block=self._config.evaluation.block,
            independent=self._config.data.independent,
        )
        return int(runs.units(np.zeros((len(runs), 1))).max()) + 1

    def absent(self, wanted: Flags) -> list[str]:
        """The classes that no mask of these images shows."""
        if self._shown is None:
            self._shown = self._classes()
        shown: list[bool] = np.any(self._shown[wanted], axis=0).tolist()
        data = self._config.data
        return [
            name
            for name, present in zip(data.class_names, shown, strict=True)
            if not present and name not in data.absent_classes
        ]

    def is_enough(self, wanted: Flags) -> bool:
        """Whether these images are enough for a held-out split."""
        splits = self._config.splits
        return self.units(wanted) >= splits.minimum_units and not (splits.every_class and self.absent(wanted))

    def _classes(self) -> npt.NDArray[np.bool_]:
        """bool [N, C]: the classes in each mask; all of them where they are not known."""
        shown = np.zeros((len(self.columns.ids), len(self._config.data.classes)), dtype=np.bool_)
        for image_id, classes in image_queries.mask_classes(self._session).items():
            row = int(np.searchsorted(self.columns.ids, image_id))
            shown[row, slice(None) if classes is None else classes] = True
        return shown


def _refuse_to_learn_from_all(config: ProjectConfig, name: HeldOut, code: int, evidence: _Evidence) -> None:
    """Refuse to train on all masks where there are enough for a split, but it could not be drawn.

    Raises:
        ConfigError: that is so.
    """
    spec: HeldOutSplit = getattr(config.splits, name)
    if spec.fraction is None or evidence.more_units(spec, code) > 0:
        return
    absent = ", ".join(evidence.absent(evidence.candidates(spec, code))) if config.splits.every_class else ""
    if absent:
        raise ConfigError(
            f"The {name} split cannot be drawn: no mask that is left for it shows {absent}.",
            "Add masks that show it, or set `splits.every_class: false`.",
        )
    raise ConfigError(
        f"The {name} split cannot be drawn: half of the {spec.by}s with masks make fewer than "
        f"{config.splits.minimum_units} independent units, or do not show every class.",
        f"Set `by: block` or a smaller `block` in `splits.{name}`, or lower `splits.minimum_units`.",
    )


def _needs(config: ProjectConfig, name: HeldOut, code: int, evidence: _Evidence) -> str:
    """What a split without a version needs, and what to do."""
    least = config.splits.minimum_units
    spec: HeldOutSplit = getattr(config.splits, name)
    drawn = spec.fraction is not None
    candidates = evidence.candidates(spec, code)
    units, more = evidence.units(candidates), evidence.more_units(spec, code)
    listed = f" and name the images in `splits.{name}.{'folder' if spec.list is None else 'list'}`"
    masks = f"{evidence.how_to_label(name)}; or put masks of "
    masks += (
        f"{{}} into `{config.data.existing_labels[0]}`" + ("" if drawn else listed) + ", and ingest again"
    )
    head = f"No model is measured on the {name} split yet:"
    if more > 0:
        first = "for the test split and " if evidence.is_after_test(code) else ""
        training = f", and as many others {first}for training" if drawn else ""
        images = int(candidates.sum())
        joined = ""
        if units < images and not config.data.independent:
            joined = f", in {counted(images, 'image')}: {NEIGHBOURS_ARE_ONE}"
        return (
            f"{head} it needs {count(least)} independent units with masks that no model has learned from"
            f"{training}; there are {count(units)}{joined}. "
            f"{masks.format(counted(more, 'more unit'))}; "
            "or lower `splits.minimum_units`, and have wide intervals."
        )
    absent = ", ".join(evidence.absent(candidates)) if config.splits.every_class else ""
    if absent:
        return (
            f"{head} no mask for it shows {absent}. {masks.format(f'images with {absent}')}; or set "
            "`splits.every_class: false`."
        )
    return (
        f"{head} too few of its {spec.by}s have {count(least)} units and every class together. Make them "
        "smaller, or lower `splits.minimum_units`."
    )

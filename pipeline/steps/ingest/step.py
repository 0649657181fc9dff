"""Ingest: from files to rows of images with group, position and split, and the first labels.

Files are streamed: a batch is looked up, decoded by threads, and written in one transaction. With the first
masks, groups, positions and classes are locked, and later images join the pool, or, where they look like a
held-out image, the side of that image. Held-out splits grow by versions, see `splits.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import images, labels, queue_items, queues
from db.queries.shards import is_pool_labeled
from db.tables import Project as ProjectRow
from db.tables import utc_now
from pipeline import rounds
from pipeline.data.listings import Named
from pipeline.data.project import LABELS_FOLDER, Project
from pipeline.data.sources import Found, Skipped, as_text, find_images, is_text
from pipeline.data.splits import ORDER
from pipeline.errors import ConfigError, DataError
from pipeline.format import none_can
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.steps.ingest.examine import Examined, examine
from pipeline.steps.ingest.held_out_labels import take_held_out_labels
from pipeline.steps.ingest.initial_labels import label_initial
from pipeline.steps.ingest.label_files import LabelFiles, read_label_files
from pipeline.steps.ingest.mask_census import FoundMask, MaskCensus
from pipeline.steps.ingest.pixel_range import PixelRange
from pipeline.steps.ingest.positions import Assigned, Assignments
from pipeline.steps.ingest.report import IngestReport
from pipeline.steps.ingest.splits import grow_splits, lock_project, note_open_splits, withdraw_initial
from pipeline.steps.mask_values import changed_meaning, meaning_of_values
from pipeline.summaries.project import masks_to_take

BATCH = 256
"""Files in a transaction."""


@one_at_a_time("ingest")
def ingest(project: Project, database: Database, *, progress: Progress = silent) -> IngestReport:
    """Register what `data.images` names; run it again when there are new files.

    Known images are not read again unless their files were written since: one of another content is refused,
    and a changed mask makes the next version of its label, or of its held-out split. Where the configuration
    gives the values of masks another meaning, all masks are read again. Files that could not be used are
    tried again.

    Raises:
        DataError: there is no image, or none that can be used; or the masks hold values that are no class,
            or lack a class, before the first labels or where values have another meaning than before: then
            nothing is stored.
        ConfigError: splits or classes were changed after they were locked, or splits cannot be drawn.
        UserError: the labels cannot be written.
    """
    started = utc_now()
    workers = min(8, os.cpu_count() or 1)
    held_out = {name: Named(project, getattr(project.config.splits, name)) for name, _ in ORDER}
    initial = Named(project, project.config.splits.initial)
    initial_uris: list[str] = []
    report = IngestReport()
    with database.session(write=False) as session:
        changed = changed_meaning(session, project)
    files = read_label_files(project, progress=progress)
    census = _census(project, database, files, again=bool(changed), workers=workers, progress=progress)
    with database.session() as session:
        locked = _open_project(session, project)
    assignments = Assignments(project, database if locked else None, held_out)
    skipped, ranges = Skipped(), PixelRange(project.config)
    found_images = find_images(project, skipped)
    with ThreadPoolExecutor(workers) as threads:
        while batch := list(islice(found_images, BATCH)):
            initial_uris += [found.uri for found in batch if found in initial]
            added, failed = _ingest_batch(
                project, database, batch, assignments, census.masks, threads, ranges, at=started
            )
            report = replace(
                report,
                found=report.found + len(batch),
                added=report.added + added,
                failures=report.failures + failed,
            )
            progress("ingest", report.found, None)
    if not report.found:
        raise DataError(
            " ".join([f"There is no image in {', '.join(project.config.data.images)}.", *skipped.lines()]),
            "Put PNG, JPEG, TIFF, WebP or BMP files there, or correct `data.images`.",
        )
    with database.session() as session:
        failure_queries.clear_failures_before(session, "ingest", started)
        failure_queries.record_failures(session, "ingest", files.rejected)
        report = replace(report, failures=report.failures + len(files.rejected))
        masks = images.count_masks(session)
        if not images.count_splits(session):
            reasons = failure_queries.list_failures(session, step="ingest", limit=1)
            session.commit()  # the reasons stay, although the command fails
            raise DataError(
                f"{none_can(report.found, 'file', 'be used as an image')}. The first: {reasons[0].reason}",
                "Run `segcurate failures` for the others.",
            )
        grown = _lock_and_grow(session, project, held_out) if masks else ()
    warnings = [*assignments.warnings(), *files.warnings, *census.warnings()]
    warnings += ranges.warnings()
    if files.unknown is not None:
        warnings.append(str(files.unknown))
    if not masks:
        warnings.append(_no_masks(project, census))
    else:
        unmatched = initial.unmatched()
        warnings += [unmatched] if unmatched else []
        first = label_initial(project, database, named=initial_uris, workers=workers, progress=progress)
        warnings += first.warnings
        report = replace(
            report,
            labeled_images=first.images,
            labeled_regions=first.regions,
            failures=report.failures + first.failures,
        )
    grown += take_held_out_labels(project, database)
    with database.session() as session:
        missing = note_open_splits(session, project)
        warnings += map(str, masks_to_take(session, project, since=started))
        if report.labeled_images and is_pool_labeled(session):
            warnings.append(
                "Every image of the pool has a mask, and is labeled: `select` will have nothing to choose. "
                "Put images without masks into `data.images`; or keep masks back with `splits.initial`, such "
                "as `{count: 8}`, and ingest again: `segcurate loop` then plays the annotator with them."
            )
        _note_meaning(session, project)
        if images.pool_images(session, limit=1):
            rounds.open_without_labels(session)
        if changed and labels.has_imported_labels(session):
            warnings.append(
                "Labels that came back from queues stay as they were read. Import their masks again if the "
                "change concerns them."
            )
        return replace(
            report,
            splits=images.count_splits(session),
            masks=masks,
            classes=tuple(census.lines()),
            skipped=(*skipped.lines(), *census.unclaimed()),
            unmasked=images.count_unmasked(session) if masks else {},
            read_again=f"{changed} All masks were read again." if changed else "",
            grown=grown,
            warnings=(*warnings, *(missing.values() if masks else ())),
        )


def _census(
    project: Project,
    database: Database,
    read: LabelFiles,
    *,
    again: bool,
    workers: int,
    progress: Progress,
) -> MaskCensus:
    """The masks that the store does not know as they are or, `again`, all. They are refused as a whole where
    they are the first, and where all are read again."""
    census = MaskCensus(project, read, again=again)
    if project.config.data.masks is None and not project.config.data.labels:
        return census
    files = find_images(project)
    looked_at = 0
    with ThreadPoolExecutor(workers) as threads:
        while batch := list(islice(files, BATCH)):
            with database.session(write=False) as session:
                known = images.images_by_uri(session, [found.uri for found in batch if is_text(found.uri)])
            census.look(batch, known, threads)
            looked_at += len(batch)
            progress("masks", looked_at, None)
    with database.session(write=False) as session:
        row = images.project_row(session)
        labels_folder = project.uri(project.workdir / LABELS_FOLDER)
        first = row is None or row.splits_locked_at is None
        first = first or not images.count_masks(session, outside=labels_folder)
    if again or first:
        census.refuse_unclear()
    return census


def _open_project(session: Session, project: Project) -> bool:
    """Write down, or compare, what must not change. Returns whether splits are locked."""
    config = project.config
    row = images.project_row(session)
    if row is None:
        session.add(ProjectRow(class_names=config.data.class_names, channels=config.data.channels))
        return False
    if row.splits_locked_at is None:
        row.class_names, row.channels = config.data.class_names, config.data.channels
        return False
    versions = images.split_versions(session)
    drawn = [name for name, _ in ORDER if versions[name]]
    locked = drawn if labels.unlearned_initial(session) is not None else ["initial", *drawn]
    splits_before, splits_now = row.splits_config or {}, config.splits.model_dump(mode="json")
    for key, before, now in (
        ("data.classes", row.class_names, config.data.class_names),
        ("data.channels", row.channels, config.data.channels),
        *((f"splits.{name}", splits_before.get(name), splits_now[name]) for name in locked),
        *([("splits.seed", splits_before.get("seed"), splits_now["seed"])] if drawn else []),
    ):
        if before != now:
            raise ConfigError(
                f"`{key}` has changed since splits were locked on {row.splits_locked_at:%Y-%m-%d}. "
                f"It was: {before}.",
                "Put it back, or start a new project with another `database.url` and `workdir`.",
            )
    return True


def _ingest_batch(
    project: Project,
    database: Database,
    batch: Sequence[Found],
    assignments: Assignments,
    masks: Mapping[str, FoundMask],
    threads: ThreadPoolExecutor,
    ranges: PixelRange,
    *,
    at: datetime,
) -> tuple[int, int]:
    """Place, decode and write some files. Returns how many images are new, and how many files failed.

    Args:
        at: a time before any of them was read: a file that is written later is read again by the next run.
    """
    failures: list[tuple[str, str]] = []
    readable = [found for found in batch if is_text(found.uri)]
    for found in batch:
        if not is_text(found.uri):
            failures.append((as_text(found.uri), "Its name is not UTF-8. Rename the file."))
    with database.session(write=False) as session:
        known = images.images_by_uri(session, [found.uri for found in readable])
    assigned: list[Assigned] = []
    for found in readable:
        try:
            assigned.append(assignments.assign(found, known=known.get(found.uri)))
        except DataError as error:
            failures.append((found.uri, str(error)))
    examined = list(
        threads.map(lambda entry: examine(project, entry, known.get(entry.found.uri), masks), assigned)
    )
    failures += [failure for entry in examined for failure in entry.failures]
    for entry in examined:
        ranges.add(entry.moments)
    with database.session() as session:
        fresh = [entry for entry in examined if entry.row is not None]
        added = _write_new(session, fresh, assignments, at=at)
        old = [entry for entry in examined if entry.known is not None]
        _update_known(session, old, at=at)
        if assignments.locked:
            _hold_named(session, old, assignments)
        else:
            images.update_images(session, list(_moved(old)))
        failure_queries.record_failures(session, "ingest", failures)
    return added, len({subject for subject, _ in failures})


def _update_known(session: Session, examined: Sequence[Examined], *, at: datetime) -> None:
    """Store what was read of known images. One whose mask was corrected gets its initial labels again, as the
    next versions, and a held-out one waits for the next version of its split."""
    pairs = [(entry.known, entry) for entry in examined if entry.known is not None]
    verified = [known for known, entry in pairs if entry.verified]
    images.update_images(session, [{"id": known.id, "ingested_at": at} for known in verified])
    masked = [(known, entry) for known, entry in pairs if entry.mask is not None]
    images.update_images(
        session, [{"id": known.id, "ingested_at": at, **entry.mask_columns} for known, entry in masked]
    )
    corrected = [
        known
        for known, entry in masked
        if known.mask_uri is not None and known.mask_sha256 != entry.mask_columns["mask_sha256"]
    ]
    queue = queues.initial_queue(session)
    if queue is not None:
        queue_items.reopen_images(session, queue_id=queue.id, image_ids=[known.id for known in corrected])
    images.set_split_version(session, [known.id for known in corrected if known.split_version], None)


def _write_new(
    session: Session, examined: Sequence[Examined], assignments: Assignments, *, at: datetime
) -> int:
    """Insert new images; one whose content is known is linked to the image that stands for it."""
    present = images.images_by_uri(session, [entry.assigned.found.uri for entry in examined])
    fresh = [entry for entry in examined if entry.row and entry.assigned.found.uri not in present]
    splits = assignments.splits([entry.assigned for entry in fresh])
    rows = [
        {**(entry.row or {}), "split": split, **entry.mask_columns, "ingested_at": at}
        for entry, split in zip(fresh, splits, strict=True)
    ]
    stands_for = images.originals(session, [row["sha256"] for row in rows])
    firsts: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    for row in rows:
        (copies if row["sha256"] in stands_for else firsts).append(row)
        stands_for.setdefault(row["sha256"], 0)
    images.insert_images(session, firsts)
    stands_for = images.originals(session, [row["sha256"] for row in copies])
    images.insert_images(session, [{**row, "duplicate_of": stands_for[row["sha256"]]} for row in copies])
    return len(fresh)


def _moved(examined: Sequence[Examined]) -> Iterator[dict[str, Any]]:
    """Known images whose place or named split is another one now; only before splits are locked."""
    for entry in examined:
        known, assigned = entry.known, entry.assigned
        if known is None:
            continue
        now = (assigned.group, assigned.position, assigned.named or "pool")
        if (known.group_name, known.position, known.split) != now:
            yield {"id": known.id, "group_name": now[0], "position": now[1], "split": now[2]}


def _hold_named(session: Session, examined: Sequence[Examined], assignments: Assignments) -> None:
    """Known images that a held-out split names by now wait for its next version, unless a model may have
    learned from them."""
    named = [
        (entry.known, entry.assigned.named)
        for entry in examined
        if entry.known is not None and entry.assigned.named not in (None, entry.known.split)
    ]
    if not named:
        return
    taken = labels.all_labeled_images(session) | queue_items.queued_images(session)
    for known, split in named:
        if known.split in ("pool", "guard") and (known.duplicate_of or known.id) not in taken:
            images.update_images(session, [{"id": known.id, "split": split}])
        else:
            assignments.name_late(split)


def _lock_and_grow(session: Session, project: Project, held_out: dict[str, Named]) -> tuple[str, ...]:
    """Lock what must not change any more, and make the next versions of the held-out splits, in the caller's
    transaction. Initial labels that no model was trained on follow a change of `splits.initial`."""
    row, settings = images.project_row(session), project.config.splits.model_dump(mode="json")
    if row is not None and row.splits_locked_at is None:
        for name, listed in held_out.items():
            unmatched = listed.unmatched()
            if unmatched:
                raise ConfigError(
                    f"`splits.{name}.list`: {unmatched}.", "Correct these lines, or remove them."
                )
    lock_project(session, project)
    unlearned = labels.unlearned_initial(session)
    if row is not None and row.splits_config != settings:
        if unlearned is not None and (row.splits_config or {}).get("initial") != settings["initial"]:
            withdraw_initial(session, unlearned)
            unlearned = None
        row.splits_config = settings
    return grow_splits(session, project, unlearned=unlearned)


def _note_meaning(session: Session, project: Project) -> None:
    """Store what the values of masks mean, now that all were read so."""
    row, meaning = images.project_row(session), meaning_of_values(project.config.data)
    if row is not None and row.mask_values != meaning:
        row.mask_values = meaning


def _no_masks(project: Project, census: MaskCensus) -> str:
    data, problems = project.config.data, [mask.problem for mask in census.masks.values() if mask.problem]
    if problems:
        unusable = none_can(len(problems), "mask", "be used")
        return f"{unusable}. The first: {problems[0]} Then ingest again."
    if data.labels:
        return (
            f"No image has a mask in {', '.join(entry.path for entry in data.labels)}. Correct `data.labels` "
            "and ingest again; or `segcurate select` chooses the first images to label."
        )
    if data.masks is None:
        return (
            "No image has a mask yet (`data.masks` is not set): `segcurate select` chooses the first ones to "
            "label."
        )
    return (
        f"No image has a mask {data.mask_template!r} in {data.masks}. If there are masks, correct "
        "`data.mask_template` and ingest again; if not, `segcurate select` chooses the first images to label."
    )

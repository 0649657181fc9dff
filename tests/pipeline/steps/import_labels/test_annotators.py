"""Several annotators of one queue, those who skip, and those who change their minds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from db.queries import labels as label_queries
from db.queries import models
from db.queries.models import count_new_labels
from db.queries.queue_items import taken_regions
from pipeline.config import IGNORE
from pipeline.data.images import read_pixels
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport
from tests.factories import Mask, ask
from tests.pipeline.labeling.answered import annotation, inside, submitted
from tests.pipeline.labeling.exported_project import NAMES, Exported

NAME = "left/frame 1.png"
OTHER = "right/frame 1.png"


def take(exported: Exported, file: Path, *, close: bool = False) -> ImportReport:
    return import_labels(*exported, source=file, close=close)


def by_ann_and_bo(exported: Exported, first: Mask, second: Mask) -> list[dict[str, Any]]:
    """Masks that two people have drawn in one image."""
    return [
        annotation(exported, NAME, first, number=1, by="ann@example.org"),
        annotation(exported, NAME, second, number=2, by="bo@example.org"),
    ]


def statuses(exported: Exported, name: str) -> list[str]:
    return [item.status for item in exported.items(name)]


def test_two_masks_of_one_image_are_both_kept_and_both_in_force(exported: Exported, tmp_path: Path) -> None:
    first = inside(exported, NAME, exported.truth[NAME])
    second = np.where((first != IGNORE) & (np.indices(first.shape)[1] < 10), 2, first).astype(np.uint8)
    answers = [
        annotation(exported, NAME, first, number=1, by="ann@example.org", seconds=30),
        annotation(exported, NAME, second, number=2, by="bo@example.org", seconds=12.5),
    ]
    report = take(exported, submitted(exported, tmp_path / "export.json", answers))
    assert (report.imported, report.rejected) == (2, [])
    labels = exported.labels()
    assert [(label.annotator, label.version, label.seconds) for label in labels] == [
        ("ann@example.org", 1, 30.0),
        ("bo@example.org", 2, 12.5),
    ]
    (image,) = ask(exported.database, models.training_labels)
    assert [label.annotator for label in image.labels] == ["ann@example.org", "bo@example.org"]
    for label, mask in zip(labels, (first, second), strict=True):
        size = mask.shape[1], mask.shape[0]
        stored = read_pixels(exported.project.path(label.mask_uri), size=size)
        np.testing.assert_array_equal(stored[:, :, 0], mask)


def test_how_far_they_agree_is_stored_for_each_region(exported: Exported, tmp_path: Path) -> None:
    first = inside(exported, NAME, np.zeros_like(exported.truth[NAME]))
    item, *rest = exported.items(NAME)
    second = first.copy()
    second[item.y : item.y + item.h // 4, item.x : item.x + item.w] = 1
    take(exported, submitted(exported, tmp_path / "export.json", by_ann_and_bo(exported, first, second)))
    disputed, *agreed = exported.items(NAME)
    assert disputed.annotators == 2
    assert disputed.disagreement == (item.h // 4) / item.h
    assert disputed.vote_entropy is not None
    np.testing.assert_allclose(disputed.vote_entropy, 0.25 * np.log(2) / np.log(3))
    assert [(one.annotators, one.disagreement, one.vote_entropy) for one in agreed] == [(2, 0.0, 0.0)] * len(
        rest
    )
    assert [one.annotators for one in exported.items(OTHER)] == [None] * len(exported.items(OTHER))


def test_a_second_annotator_of_other_regions_takes_nothing_away(exported: Exported, tmp_path: Path) -> None:
    first = inside(exported, NAME, exported.truth[NAME], slice(0, 1))
    second = inside(exported, NAME, exported.truth[NAME], slice(1, None))
    file = tmp_path / "export.json"
    one = annotation(exported, NAME, first, number=1, by="ann@example.org")
    take(exported, submitted(exported, file, [one]))
    assert statuses(exported, NAME)[0] == "labeled"
    assert set(statuses(exported, NAME)[1:]) == {"queued"}
    other = annotation(exported, NAME, second, number=2, by="bo@example.org")
    take(exported, submitted(exported, file, [one, other]))
    assert set(statuses(exported, NAME)) == {"labeled"}
    assert ask(exported.database, count_new_labels) == len(exported.items(NAME))


def test_a_region_that_two_have_labeled_is_one_new_label(exported: Exported, tmp_path: Path) -> None:
    mask = inside(exported, NAME, exported.truth[NAME])
    take(exported, submitted(exported, tmp_path / "export.json", by_ann_and_bo(exported, mask, mask)))
    assert len(exported.labels()) == 2  # the same mask, and two votes
    assert ask(exported.database, count_new_labels) == len(exported.items(NAME))


def test_importing_several_annotators_twice_changes_nothing(exported: Exported, tmp_path: Path) -> None:
    mask = inside(exported, NAME, exported.truth[NAME])
    other = np.where(mask == IGNORE, mask, 1).astype(np.uint8)
    answers = [
        annotation(exported, NAME, mask, number=1, by="ann@example.org"),
        annotation(exported, NAME, other, number=2, by="bo@example.org"),
        annotation(exported, NAME, mask, number=3, by="cy@example.org"),
    ]
    file = submitted(exported, tmp_path / "export.json", answers)
    take(exported, file)
    before = [(label.id, label.mask_sha256) for label in exported.labels()]
    report = take(exported, file)
    assert (report.imported, report.unchanged) == (0, 3)
    assert [(label.id, label.mask_sha256) for label in exported.labels()] == before


def test_a_changed_annotation_is_the_next_version_of_its_own_annotator(
    exported: Exported, tmp_path: Path
) -> None:
    mask = inside(exported, NAME, exported.truth[NAME])
    file = tmp_path / "export.json"
    first = by_ann_and_bo(exported, mask, mask)
    take(exported, submitted(exported, file, first))
    corrected = np.where(mask == IGNORE, mask, 2).astype(np.uint8)
    again = [
        annotation(exported, NAME, corrected, number=1, at="2026-11-02T10:00:00Z", by="ann@example.org"),
        first[1],
    ]
    report = take(exported, submitted(exported, file, again))
    assert (report.imported, report.unchanged) == (1, 1)
    in_force = ask(exported.database, label_queries.labels_in_force, image_id=exported.images()[NAME].id)
    assert [(label.annotator, label.version) for label in in_force] == [
        ("bo@example.org", 2),
        ("ann@example.org", 3),
    ]
    assert all(item.disagreement for item in exported.items(NAME))


def test_a_correction_replaces_its_annotation_whoever_makes_it(exported: Exported, tmp_path: Path) -> None:
    mask = inside(exported, NAME, exported.truth[NAME])
    file = tmp_path / "export.json"
    take(exported, submitted(exported, file, by_ann_and_bo(exported, mask, mask)))
    corrected = np.where(mask == IGNORE, mask, 2).astype(np.uint8)
    again = annotation(exported, NAME, corrected, number=1, at="2026-11-02T10:00:00Z", by="cy@example.org")
    assert take(exported, submitted(exported, file, [again])).imported == 1
    in_force = ask(exported.database, label_queries.labels_in_force, image_id=exported.images()[NAME].id)
    assert [(label.annotator, label.version) for label in in_force] == [
        ("bo@example.org", 2),
        ("cy@example.org", 3),
    ]
    assert {item.annotators for item in exported.items(NAME)} == {2}


def test_a_skipped_image_is_recorded_as_skipped_and_not_asked_for_again(
    exported: Exported, tmp_path: Path
) -> None:
    answers = [
        annotation(exported, NAME, None, number=1),
        annotation(exported, OTHER, exported.truth[OTHER], number=2),
    ]
    report = take(exported, submitted(exported, tmp_path / "export.json", answers))
    assert (report.imported, report.skipped) == (1, 1)
    assert set(statuses(exported, NAME)) == {"skipped"}
    assert set(statuses(exported, OTHER)) == {"labeled"}
    assert f"images/{NAME}" not in report.missing
    assert len(report.missing) == len(NAMES) - 2
    assert take(exported, tmp_path / "export.json").skipped == 0
    take(exported, tmp_path / "export.json", close=True)
    assert set(statuses(exported, NAME)) == {"skipped"}
    taken = ask(exported.database, taken_regions)
    skipped = exported.images()[NAME].id
    assert (taken.image_id == skipped).sum() == len(exported.items(NAME))


def test_what_one_skips_another_may_label(exported: Exported, tmp_path: Path) -> None:
    answers = [
        annotation(exported, NAME, None, number=1, by="ann@example.org"),
        annotation(exported, NAME, exported.truth[NAME], number=2, by="bo@example.org"),
    ]
    report = take(exported, submitted(exported, tmp_path / "export.json", answers))
    assert (report.imported, report.skipped) == (1, 0)
    assert set(statuses(exported, NAME)) == {"labeled"}


def test_a_round_closes_once_every_image_is_labeled_or_skipped(exported: Exported, tmp_path: Path) -> None:
    answers = [
        annotation(exported, name, None if name == NAME else exported.truth[name], number=number)
        for number, name in enumerate(NAMES, start=1)
    ]
    report = take(exported, submitted(exported, tmp_path / "export.json", answers))
    assert report.closed
    assert exported.state() == (2, "train")


def test_a_queue_that_the_project_does_not_have_is_named(exported: Exported, tmp_path: Path) -> None:
    good = annotation(exported, NAME, exported.truth[NAME], number=1)
    bad = annotation(exported, OTHER, exported.truth[OTHER], number=2)
    file = submitted(exported, tmp_path / "export.json", [good, bad])
    text = file.read_text()
    place = text.rindex("round-01")
    file.write_text(text[:place] + "round-77" + text[place + len("round-01") :])
    report = take(exported, file)
    assert report.imported == 1
    ((subject, reason),) = report.rejected
    assert "annotation 2" in subject
    assert "'round-77', which this project does not have" in reason


def test_an_image_of_another_content_is_refused(exported: Exported, tmp_path: Path) -> None:
    file = submitted(
        exported, tmp_path / "export.json", [annotation(exported, NAME, exported.truth[NAME], number=1)]
    )
    file.write_text(file.read_text().replace(exported.images()[NAME].sha256, "0" * 64))
    report = take(exported, file)
    assert (report.imported, len(report.rejected)) == (0, 1)
    assert "another content" in report.rejected[0][1]


def test_a_file_that_breaks_off_is_imported_up_to_there(exported: Exported, tmp_path: Path) -> None:
    answers = [
        annotation(exported, name, exported.truth[name], number=number)
        for number, name in enumerate((NAME, OTHER), start=1)
    ]
    file = submitted(exported, tmp_path / "export.json", answers)
    file.write_bytes(file.read_bytes()[:-200])
    report = take(exported, file)
    assert report.imported == 1
    assert len(report.rejected) == 1


def test_agreement_is_forgotten_where_a_correction_leaves_no_second_vote(
    exported: Exported, tmp_path: Path
) -> None:
    mask = inside(exported, NAME, exported.truth[NAME])
    file = tmp_path / "export.json"
    first = by_ann_and_bo(exported, mask, mask)
    take(exported, submitted(exported, file, first))
    assert [item.annotators for item in exported.items(NAME)] == [2] * len(exported.items(NAME))
    fewer = inside(exported, NAME, exported.truth[NAME], slice(1, None))
    again = [
        annotation(exported, NAME, fewer, number=2, at="2026-11-02T10:00:00Z", by="bo@example.org"),
    ]
    take(exported, submitted(exported, file, again))
    assert [item.annotators for item in exported.items(NAME)] == [
        None,
        *[2] * (len(exported.items(NAME)) - 1),
    ]
    assert set(statuses(exported, NAME)) == {"labeled"}

"""Masks come back: every pixel, to the image, region and queue item that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from db.queries import labels
from db.tables import Label
from pipeline.config import IGNORE
from pipeline.data.masks import MaskCodec, read_mask
from pipeline.errors import DataError, NotYourTurn, UserError
from pipeline.steps.annotate import annotate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels, incoming_queue
from pipeline.steps.import_labels.step import ImportReport
from tests.factories import ask, new_image, put
from tests.pipeline.labeling.exported_project import NAMES, ROTATED, Exported, entries_of, ids, write_png
from tests.pipeline.steps.ingest.folder import count_opens

COLORS = np.array([[230, 25, 75], [60, 180, 75], [255, 225, 25]], dtype=np.uint8)
"""What the label map of an export says for three classes without a colour of their own."""


def mask_file(folder: Path, name: str) -> Path:
    """Where the annotator puts the mask of an image."""
    mask = entries_of(folder)[name].mask
    assert mask is not None
    return folder / mask


def deliver(exported: Exported, folder: Path, names: Iterable[str] = NAMES) -> None:
    """Whole-image masks, named as the manifest says."""
    for name in names:
        write_png(mask_file(folder, name), ids(exported.truth[name]))


def take(exported: Exported, folder: Path, *, close: bool = False) -> ImportReport:
    return import_labels(*exported, source=folder, close=close)


def stored_mask(exported: Exported, label: Label) -> npt.NDArray[np.uint8]:
    """The index mask that a label points to."""
    return np.asarray(PillowImage.open(exported.project.path(label.mask_uri)))


def statuses(exported: Exported, name: str | None = None) -> set[str]:
    return {item.status for item in exported.items(name)}


def test_whole_masks_come_back_pixel_by_pixel_and_close_the_round(exported: Exported, folder: Path) -> None:
    deliver(exported, folder)
    report = import_labels(*exported, source=folder, annotator="Ada")
    assert (report.imported, report.unchanged, report.rejected, report.missing) == (len(NAMES), 0, [], [])
    assert report.labeled_pixels == sum(mask.size for mask in exported.truth.values())
    by_image = {label.image_id: label for label in exported.labels()}
    for name, image in exported.images().items():
        label = by_image[image.id]
        np.testing.assert_array_equal(stored_mask(exported, label), exported.truth[name])
        assert (label.queue_id, label.version, label.source) == (exported.items()[0].queue_id, 1, "import")
        assert label.annotator == "Ada"
        assert exported.label_boxes(label.id) == {(0, 0, *NAMES[name])}
    assert statuses(exported) == {"labeled"}
    assert report.closed
    assert exported.state() == (2, "train")


def test_the_manifest_and_each_mask_are_opened_once(
    exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(exported, folder)
    opens = count_opens(monkeypatch, folder)
    assert take(exported, folder).imported == len(NAMES)
    read = {name: count for name, count in opens.items() if name.startswith(("masks/", "manifest"))}
    assert len(read) == len(NAMES) + 1
    assert set(read.values()) == {1}


def test_masks_of_the_regions_alone_label_these_regions_and_nothing_else(
    exported: Exported, folder: Path
) -> None:
    assert annotate(*exported, folder).painted == len(exported.items())
    report = take(exported, folder)
    assert report.closed
    assert report.labeled_pixels == sum(item.w * item.h for item in exported.items())
    by_image = {label.image_id: label for label in exported.labels()}
    for name, image in exported.images().items():
        boxes = {(item.x, item.y, item.w, item.h) for item in exported.items(name)}
        assert exported.label_boxes(by_image[image.id].id) == boxes
        expected = np.full_like(exported.truth[name], IGNORE)
        for x, y, w, h in boxes:
            expected[y : y + h, x : x + w] = exported.truth[name][y : y + h, x : x + w]
        np.testing.assert_array_equal(stored_mask(exported, by_image[image.id]), expected)


def test_importing_twice_changes_nothing(exported: Exported, folder: Path) -> None:
    deliver(exported, folder, ["left/frame 1.png", ROTATED])
    first = take(exported, folder)
    before = [(label.id, label.version, label.mask_sha256) for label in exported.labels()]
    second = take(exported, folder)
    assert (first.imported, second.imported, second.unchanged) == (2, 0, 2)
    assert [(label.id, label.version, label.mask_sha256) for label in exported.labels()] == before
    assert second.open_items == first.open_items > 0
    assert exported.state() == (1, "import")


def test_a_corrected_mask_is_version_two_also_when_the_round_is_closed(
    exported: Exported, folder: Path
) -> None:
    deliver(exported, folder)
    take(exported, folder)
    assert exported.state() == (2, "train")
    corrected = exported.truth["left/frame 1.png"].copy()
    corrected[10:20, 10:20] = 2
    write_png(mask_file(folder, "left/frame 1.png"), ids(corrected))
    report = take(exported, folder)
    assert (report.imported, report.unchanged) == (1, len(NAMES) - 1)
    image = exported.images()["left/frame 1.png"]
    queue_id = exported.items()[0].queue_id
    latest = ask(exported.database, labels.latest_label, image_id=image.id, queue_id=queue_id)
    newest = ask(exported.database, labels.labels_in_force, queue_id=queue_id)
    assert latest is not None
    assert latest.version == 2
    np.testing.assert_array_equal(stored_mask(exported, latest), corrected)
    assert len(newest) == len(NAMES)
    assert len(exported.labels()) == len(NAMES) + 1
    assert exported.state() == (2, "train")


def test_a_region_left_unpainted_stays_queued_until_the_round_is_closed(
    exported: Exported, folder: Path
) -> None:
    deliver(exported, folder, set(NAMES) - {"left/frame 1.png"})
    first, *rest = exported.items("left/frame 1.png")
    mask = np.full_like(exported.truth["left/frame 1.png"], IGNORE)
    mask[first.y : first.y + first.h, first.x : first.x + first.w] = 1
    for item in rest:  # a third of each
        mask[item.y : item.y + item.h // 3, item.x : item.x + item.w] = 1
    write_png(mask_file(folder, "left/frame 1.png"), ids(mask))
    report = take(exported, folder)
    assert len(report.unpainted) == len(rest) > 0
    assert f"x {rest[0].x}, y {rest[0].y}" in report.unpainted[0]
    assert [item.status for item in exported.items("left/frame 1.png")] == ["labeled"] + ["queued"] * len(
        rest
    )
    assert exported.state() == (1, "import")
    label = next(
        label for label in exported.labels() if label.image_id == exported.images()["left/frame 1.png"].id
    )
    assert label.labeled_pixels == np.count_nonzero(mask != IGNORE)
    assert exported.label_boxes(label.id) == {(first.x, first.y, first.w, first.h)}
    closing = take(exported, folder, close=True)
    assert (closing.released, closing.closed) == (len(rest), True)
    assert statuses(exported, "left/frame 1.png") == {"labeled", "released"}
    assert exported.state() == (2, "train")


def test_what_the_simulated_annotator_leaves_unpainted_was_looked_at(selected: Exported) -> None:
    void = np.full_like(selected.truth["left/frame 1.png"], IGNORE)
    write_png(selected.project.root / "masks" / "left" / "frame 1.png", ids(void))
    folder = export(*selected).folder
    annotate(*selected, folder)
    options = {"source": folder, "close": True, "origin": "simulation"}
    import_labels(*selected, **options)
    report = import_labels(*selected, **options)  # a killed loop does it again
    assert statuses(selected) == {"labeled"}
    labeled = {label.image_id for label in selected.labels()}
    assert selected.images()["left/frame 1.png"].id not in labeled
    assert report.unchanged == len(NAMES) - 1
    assert {label.source for label in selected.labels()} == {"simulation"}


def test_closing_without_any_mask_releases_the_whole_queue(exported: Exported, folder: Path) -> None:
    with pytest.raises(DataError, match="There is no mask in"):
        take(exported, folder)
    report = take(exported, folder, close=True)
    assert report.released == len(exported.items())
    assert exported.state() == (2, "train")


def test_masks_of_the_first_class_and_255_alone_are_taken_with_a_warning(
    exported: Exported, folder: Path
) -> None:
    for name in NAMES:
        write_png(mask_file(folder, name), np.where(exported.truth[name] == 0, 0, 255).astype(np.uint8))
    report = take(exported, folder)
    assert report.imported == len(NAMES)
    (line,) = [line for line in report.lines() if line.startswith("warning: ")]
    names = exported.project.config.data.class_names
    assert f"The masks show only {names[0]} and pixels that are not labeled" in line
    assert f"`{{name: {names[-1]}, id: 255}}`" in line
    deliver(exported, folder)
    assert "warning: " not in "\n".join(take(exported, folder).lines())


@pytest.mark.parametrize("kind", ["rgb", "palette", "grey rgb", "sixteen bits", "bmp"])
def test_masks_of_every_encoding_mean_the_same(exported: Exported, folder: Path, kind: str) -> None:
    name = "left/frame 1.png"
    truth = exported.truth[name]
    path = mask_file(folder, name)
    values = ids(truth)
    if kind == "rgb":
        write_png(path, COLORS[truth])
    elif kind == "grey rgb":
        write_png(path, np.repeat(values[:, :, None], 3, axis=2))
    elif kind == "sixteen bits":
        write_png(path, values.astype(np.uint16))
    elif kind == "bmp":
        write_png(path.with_suffix(".bmp"), values)
    else:
        indexed = PillowImage.fromarray(values, mode="L").convert("P")
        indexed.putdata(values.ravel().tolist())
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[[0, 7, 40]] = COLORS
        indexed.putpalette(palette.ravel().tolist())
        indexed.save(path)
    report = take(exported, folder)
    assert (report.imported, report.rejected) == (1, [])
    (label,) = exported.labels()
    np.testing.assert_array_equal(stored_mask(exported, label), truth)


def test_a_palette_whose_colours_contradict_its_values_is_refused(exported: Exported, folder: Path) -> None:
    name = "left/frame 1.png"
    values = ids(exported.truth[name])
    indexed = PillowImage.fromarray(values).convert("P")
    indexed.putdata(values.ravel().tolist())
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[[7, 0, 40]] = COLORS
    indexed.putpalette(palette.ravel().tolist())
    indexed.save(mask_file(folder, name))
    report = take(exported, folder)
    assert report.imported == 0
    assert "other classes than its colours" in report.rejected[0][1]


def test_any_folder_of_masks_is_matched_by_export_name_id_and_image_name(
    exported: Exported, folder: Path
) -> None:
    loose = exported.project.root / "from a tool"
    images = exported.images()
    named = {
        "left/frame 1.png": Path(entries_of(folder)["left/frame 1.png"].image).name + ".png",
        ROTATED: f"{images[ROTATED].id}.png",
        'it\'s a "quoted" näme.png': 'it\'s a "quoted" na\u0308me.png',  # as macOS spells it
        "nested/deep/a.b..c.png": "deep/a.b..c.png",
        "right/frame 1.png": "right/frame 1.png",
        "sixteen bits.tif": "sixteen bits.png",
        "tiny.png": "tiny.png",
    }
    for name, as_file in named.items():
        write_png(loose / as_file, ids(exported.truth[name]))
    report = take(exported, loose)
    assert (report.imported, report.rejected) == (len(NAMES), [])
    by_image = {label.image_id: label for label in exported.labels()}
    for name, image in images.items():
        np.testing.assert_array_equal(stored_mask(exported, by_image[image.id]), exported.truth[name])


def test_a_name_that_two_images_have_is_refused(exported: Exported) -> None:
    loose = exported.project.root / "flat"
    write_png(loose / "frame 1.png", ids(exported.truth["left/frame 1.png"]))
    write_png(loose / "tiny.png", ids(exported.truth["tiny.png"]))
    report = take(exported, loose)
    assert report.imported == 1
    ((file, reason),) = report.rejected
    assert file == "frame 1.png"
    assert "ambiguous" in reason
    assert "left/frame 1.png" in reason
    assert "right/frame 1.png" in reason


def test_a_mask_of_an_image_outside_the_queue_is_not_taken_for_its_namesake(selected: Exported) -> None:
    """The tool delivers all masks of a data set in one flat folder; only one of two namesakes is queued."""
    right = selected.images()["right/frame 1.png"].id
    with selected.database.session() as session:
        for item in selected.items("right/frame 1.png"):
            session.delete(session.merge(item))
    export(*selected)
    loose = selected.project.root / "flat"
    write_png(loose / "frame 1.png", ids(selected.truth["right/frame 1.png"]))
    write_png(loose / "right" / "frame 1.png", ids(selected.truth["right/frame 1.png"]))
    report = take(selected, loose)
    assert report.imported == 0
    assert [file for file, _ in report.rejected] == ["frame 1.png"]
    assert (report.outside, report.outside_examples) == (1, ["right/frame 1.png"])
    assert right not in {label.image_id for label in selected.labels()}


def test_masks_of_thousands_of_other_images_are_one_line(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_queue, "MOST_LINES", 4)
    loose = exported.project.root / "all masks"
    write_png(loose / "tiny.png", ids(exported.truth["tiny.png"]))
    with exported.database.session() as session:
        for number in range(11):
            put(session, new_image(f"images/other {number:02d}.png"))
    for number in range(11):
        write_png(loose / f"other {number:02d}.png", ids(exported.truth["tiny.png"]))
    report = take(exported, loose)
    assert (report.imported, report.rejected) == (1, [])
    line = "11 masks belong to no image of round-01 and are left out: "
    assert f"{line}other 00.png, other 01.png, other 02.png, …." in report.lines()
    write_png(loose / "stranger.png", ids(exported.truth["tiny.png"]))
    again = take(exported, loose)
    assert again.outside == 11
    assert again.rejected == [
        (
            "stranger.png",
            "No image of the project has this name. Give it the name of its image, or remove it.",
        )
    ]


def test_a_queue_that_does_not_exist_is_named_with_those_that_do(exported: Exported, folder: Path) -> None:
    deliver(exported, folder)
    with pytest.raises(UserError, match=r"There is no queue 'round-09'; there are: round-01\."):
        import_labels(*exported, source=folder / "masks", queue="round-09")


def test_the_masks_folder_itself_may_be_named(exported: Exported, folder: Path) -> None:
    deliver(exported, folder)
    assert take(exported, folder / "masks").imported == len(NAMES)


def test_an_export_written_elsewhere_comes_back_from_there(selected: Exported, tmp_path: Path) -> None:
    folder = export(*selected, folder=tmp_path / "usb stick" / "for Ada").folder
    deliver(selected, folder)
    moved = folder.rename(tmp_path / "returned")
    assert take(selected, moved).imported == len(NAMES)


def test_the_stored_mask_reads_like_any_mask_of_the_work_folder(exported: Exported, folder: Path) -> None:
    deliver(exported, folder, [ROTATED])
    take(exported, folder)
    (label,) = exported.labels()
    assert label.mask_uri.startswith(".segcurate/labels/")
    assert label.mask_sha256 in label.mask_uri
    plain = exported.project.config.data.model_copy(
        update={
            "classes": [
                item.model_copy(update={"id": i})
                for i, item in enumerate(exported.project.config.data.classes)
            ]
        }
    )
    mask = read_mask(exported.project.path(label.mask_uri), MaskCodec.from_config(plain), size=NAMES[ROTATED])
    np.testing.assert_array_equal(mask, exported.truth[ROTATED])


def test_the_time_of_a_label_is_believed_only_between_export_and_now(
    exported: Exported, folder: Path
) -> None:
    deliver(exported, folder, ["tiny.png", ROTATED])
    os.utime(mask_file(folder, "tiny.png"), (0, 0))
    os.utime(mask_file(folder, ROTATED), (9e9, 9e9))
    take(exported, folder)
    for label in exported.labels():
        assert label.labeled_at <= label.created_at
        assert label.labeled_at.year >= 2024


def test_import_refuses_politely_before_the_export(selected: Exported) -> None:
    loose = selected.project.root / "loose"
    write_png(loose / "tiny.png", ids(selected.truth["tiny.png"]))
    with pytest.raises(NotYourTurn, match="`segcurate export` comes next.*mask files by `data.masks`"):
        take(selected, loose)


def test_an_import_that_dies_before_the_end_has_done_nothing_and_can_be_run_again(
    exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(exported, folder)

    def die(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipeline.steps.import_labels.step._close", die)
        take(exported, folder)
    assert exported.labels() == []
    assert statuses(exported) == {"queued"}
    assert take(exported, folder).imported == len(NAMES)


@pytest.mark.parametrize("tool", [None, "voc", "coco", "cvat", "label-studio", "folder"])
def test_a_device_is_not_read(exported: Exported, tool: str | None) -> None:
    with pytest.raises(DataError, match="/dev/zero is no plain file"):
        import_labels(*exported, source=Path("/dev/zero"), tool=tool)

"""Whatever the tool: a queue of real photographs goes out, comes back through the tool's own code, and every
mask is what it was, of the image, the region and the queue item that it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.config import IGNORE
from pipeline.data.images import read_image, read_pixels
from pipeline.errors import DataError
from pipeline.labeling.manifest import ManifestImage, read_manifest
from pipeline.labeling.tools import TOOLS
from pipeline.steps.annotate import annotate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from tests.factories import new_queue, put
from tests.pipeline.labeling.annotators_tools import ANNOTATORS_TOOLS
from tests.pipeline.labeling.exported_project import Exported
from tests.pipeline.labeling.photographs import ABSENT, make_photo_project

Mask = npt.NDArray[np.uint8]
ALL = sorted(TOOLS)


@pytest.fixture(scope="module")
def photographs_once(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = make_photo_project(tmp_path_factory.mktemp("photographs"))
    made.database.close()
    return made


@pytest.fixture(scope="module")
def exported_once(
    photographs_once: Exported, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """The project with its queue exported to a tool: written once, for all tests."""

    @cache
    def exported(tool: str) -> Exported:
        made = photographs_once.copied_to(tmp_path_factory.mktemp(tool) / "project")
        export(made.project, made.database, to=tool)
        made.database.close()
        return made

    return exported


@pytest.fixture
def photos(tool: str, exported_once: Callable[[str], Exported], tmp_path: Path) -> Exported:
    """A project of its own, with its queue exported to the tool."""
    return exported_once(tool).copied_to(tmp_path / "project")


@pytest.fixture
def out(photos: Exported, tool: str) -> Path:
    """The exported folder."""
    return photos.project.root / "queues" / ("round-01" if tool == "folder" else f"round-01-{tool}")


def entries_of(folder: Path) -> dict[str, ManifestImage]:
    """By the image's name."""
    entries = [one for one in read_manifest(folder / "manifest.jsonl") if isinstance(one, ManifestImage)]
    return {entry.uri.removeprefix("images/"): entry for entry in entries}


def inside_regions(photos: Exported, name: str) -> Mask:
    """The truth, inside the queued regions only."""
    painted = np.full_like(photos.truth[name], IGNORE)
    for item in photos.items(name):
        window = np.s_[item.y : item.y + item.h, item.x : item.x + item.w]
        painted[window] = photos.truth[name][window]
    return painted


def stored(photos: Exported) -> dict[str, Mask]:
    """The masks that the store has, by the image's name."""
    images = {image.id: (name, (image.width, image.height)) for name, image in photos.images().items()}
    found: dict[str, Mask] = {}
    for label in photos.labels():
        name, size = images[label.image_id]
        mask = read_pixels(photos.project.path(label.mask_uri), size=size)
        found[name] = mask[:, :, 0].astype(np.uint8)
    return found


def test_every_tool_is_tried() -> None:
    assert sorted(ANNOTATORS_TOOLS) == ALL
    assert sorted(["folder", "label-studio", "cvat", "cvat-masks", "coco", "coco-panoptic", "voc"]) == ALL


@pytest.mark.parametrize("tool", ALL)
def test_the_tool_shows_exactly_what_the_model_proposes(
    tool: str, out: Path, exported_once: Callable[[str], Exported]
) -> None:
    folder = exported_once("folder").project.root / "queues" / "round-01"
    proposed = ANNOTATORS_TOOLS["folder"].shows(folder)
    assert {value for mask in proposed.values() for value in np.unique(mask)} - {IGNORE}
    shown = ANNOTATORS_TOOLS[tool].shows(out)
    assert set(shown) == set(proposed)
    for stem, mask in proposed.items():
        np.testing.assert_array_equal(shown[stem], mask, err_msg=stem)


@pytest.mark.parametrize("tool", ALL)
def test_the_images_go_out_upright_and_in_the_order_of_their_ranks(
    photos: Exported, out: Path, tool: str
) -> None:
    entries = entries_of(out)
    assert list(entries) == list(photos.truth)
    assert [entry.rank for entry in entries.values()] == sorted(entry.rank for entry in entries.values())
    for name, entry in entries.items():
        image = photos.images()[name]
        sent = read_image(out / entry.image, channels=3, max_pixels=10**6)
        kept = read_image(photos.project.image(image.uri), channels=3, max_pixels=10**6)
        np.testing.assert_array_equal(sent, kept, err_msg=name)


@pytest.mark.parametrize("tool", ALL)
def test_masks_of_the_queued_regions_come_back_pixel_for_pixel(
    photos: Exported, out: Path, tool: str, tmp_path: Path
) -> None:
    stems = {Path(entry.image).stem: name for name, entry in entries_of(out).items()}
    painted = {stem: inside_regions(photos, name) for stem, name in stems.items()}
    source = ANNOTATORS_TOOLS[tool].exports(out, painted, tmp_path)
    report = import_labels(photos.project, photos.database, source=source)
    assert (report.rejected, report.overlapping, report.unpainted, report.missing) == ([], [], [], [])
    assert report.imported == len(photos.truth)
    came = stored(photos)
    for stem, name in stems.items():
        np.testing.assert_array_equal(came[name], painted[stem], err_msg=name)
    for label in photos.labels():
        name = next(name for name, image in photos.images().items() if image.id == label.image_id)
        boxes = {(item.x, item.y, item.w, item.h) for item in photos.items(name)}
        assert photos.label_boxes(label.id) == boxes
    assert {item.status for item in photos.items()} == {"labeled"}
    assert report.closed


@pytest.mark.parametrize("tool", ALL)
def test_masks_of_whole_images_come_back_pixel_for_pixel(
    photos: Exported, out: Path, tool: str, tmp_path: Path
) -> None:
    stems = {Path(entry.image).stem: name for name, entry in entries_of(out).items()}
    painted = {stem: photos.truth[name] for stem, name in stems.items()}
    assert not any((mask == ABSENT).any() for mask in painted.values())
    source = ANNOTATORS_TOOLS[tool].exports(out, painted, tmp_path)
    report = import_labels(photos.project, photos.database, source=source, tool=tool)
    assert (report.rejected, report.overlapping) == ([], [])
    came = stored(photos)
    for name, mask in photos.truth.items():
        np.testing.assert_array_equal(came[name], mask, err_msg=name)
    again = import_labels(photos.project, photos.database, source=source, tool=tool, queue="round-01")
    assert (again.imported, again.unchanged) == (0, len(photos.truth))


@pytest.mark.parametrize("tool", ALL)
def test_an_image_that_is_left_out_and_a_region_that_is_left_blank_stay_queued(
    photos: Exported, out: Path, tool: str, tmp_path: Path
) -> None:
    stems = {Path(entry.image).stem: name for name, entry in entries_of(out).items()}
    painted = {stem: inside_regions(photos, name) for stem, name in stems.items()}
    first, *others = photos.items("cat.png")
    cat = next(stem for stem, name in stems.items() if name == "cat.png")
    painted[cat][first.y : first.y + first.h, first.x : first.x + first.w] = IGNORE
    thin = next(stem for stem, name in stems.items() if name == "thin.png")
    painted[thin][:] = IGNORE
    source = ANNOTATORS_TOOLS[tool].exports(out, painted, tmp_path)
    report = import_labels(photos.project, photos.database, source=source)
    assert report.imported == len(photos.truth) - 1
    assert {item.status for item in photos.items("thin.png")} == {"queued"}
    assert [item.status for item in photos.items("cat.png")] == ["queued", *["labeled"] * len(others)]
    assert report.missing == ["images/thin.png"]
    assert not report.closed


@pytest.mark.parametrize("tool", ALL)
def test_masks_of_another_queue_are_left_out_without_a_rejection(
    photos: Exported, out: Path, tool: str, tmp_path: Path
) -> None:
    stems = {Path(entry.image).stem: name for name, entry in entries_of(out).items()}
    source = ANNOTATORS_TOOLS[tool].exports(
        out, {stem: photos.truth[name] for stem, name in stems.items()}, tmp_path
    )
    if tool == "folder":
        source = (source / "masks").rename(tmp_path / "loose")
    with photos.database.session() as session:
        other = put(session, new_queue("review-01"))
        for item in photos.items("cat.png"):
            item.queue_id = other.id
            session.merge(item)
    report = import_labels(photos.project, photos.database, source=source, tool=tool, queue="round-01")
    assert (report.imported, report.outside, report.rejected) == (len(photos.truth) - 1, 1, [])
    assert "cat.png" not in stored(photos)
    assert "1 mask belongs to no image of round-01 and is left out: " in report.lines()[1]


@pytest.mark.parametrize("tool", sorted(set(ALL) - {"folder"}))
def test_a_tools_folder_is_nothing_to_paint_masks_into(photos: Exported, out: Path, tool: str) -> None:
    with pytest.raises(DataError, match="which masks are not painted into"):
        annotate(photos.project, photos.database, out)

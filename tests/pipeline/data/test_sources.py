from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ProjectConfig
from pipeline.data import sources
from pipeline.data.listings import Named, PathTable, Sequences, read_list
from pipeline.data.project import Project
from pipeline.data.sources import Skipped, find_images, mask_path
from pipeline.errors import DataError


def project(root: Path, **data: Any) -> Project:
    splits = data.pop("splits", {})
    data = {"images": ["images"], "classes": ["a", "b"], **data}
    return Project(
        config=ProjectConfig.model_validate({"name": "p", "data": data, "splits": splits}), root=root
    )


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def uris(found_in: Project) -> list[str]:
    return [found.uri for found in find_images(found_in)]


def test_folders_are_walked_in_natural_order_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/s2/f{n}.png" for n in (10, 9, 1)), "images/s10/a.JPG", "images/z.tif")
    touch(tmp_path, "images/readme.txt", "images/.hidden.png", "images/.git/a.png", "other/a.png")
    assert uris(project(tmp_path)) == [
        "images/z.tif",
        "images/s2/f1.png",
        "images/s2/f9.png",
        "images/s2/f10.png",
        "images/s10/a.JPG",
    ]


def test_a_folder_larger_than_memory_is_sorted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"images/f{n}.png" for n in range(25)))
    in_memory = uris(project(tmp_path))
    monkeypatch.setattr(sources, "SORTED_IN_MEMORY", 4)
    assert uris(project(tmp_path)) == in_memory == [f"images/f{n}.png" for n in range(25)]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("images/*.png", ["images/a.png"]),
        ("images/**/*.png", ["images/a.png", "images/x/b.png", "images/x/y/c.png"]),
        ("images/*/*.png", ["images/x/b.png"]),
        ("images/x/[bc].???", ["images/x/b.png"]),
        ("images/x/y/c.png", ["images/x/y/c.png"]),
        ("./images/../images/x", ["images/x/b.png", "images/x/y/c.png"]),
    ],
)
def test_globs_and_single_files(tmp_path: Path, entry: str, expected: list[str]) -> None:
    touch(tmp_path, "images/a.png", "images/a.jpg", "images/x/b.png", "images/x/y/c.png")
    assert uris(project(tmp_path, images=[entry])) == expected


def test_a_file_that_two_entries_name_is_found_once(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/x/b.png", "images/x/c.png")
    entries = ["images/x/c.png", "images/x/*.png", "images"]
    assert uris(project(tmp_path, images=entries)) == ["images/x/c.png", "images/x/b.png", "images/a.png"]


def test_odd_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["a b.png", 'it\'s "so".png', "Straße 东京.png", "a..b.png", "[x]*.png"]
    touch(tmp_path, *(f"images/{name}" for name in names))
    assert sorted(uris(project(tmp_path))) == sorted(f"images/{name}" for name in names)
    assert uris(project(tmp_path, images=["images/[x]*.png"])) == ["images/[x]*.png"]


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.png", "images/b.png")
    os.symlink(tmp_path / "store", tmp_path / "images" / "linked")
    os.symlink(tmp_path / "images", tmp_path / "images" / "circle")
    assert uris(project(tmp_path)) == ["images/b.png", "images/linked/a.png"]


def test_links_that_lead_nowhere_or_to_themselves_stop_no_walk(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").touch()
    os.symlink("self", folder / "self")
    os.symlink("other", folder / "one")
    os.symlink("one", folder / "other")
    os.symlink("nowhere", folder / "dead")
    assert uris(project(tmp_path)) == ["images/a.png"]


def test_the_projects_own_folders_and_the_mask_folder_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".segcurate/labels/x.png", "queues/round-01/x.png", "masks/a.png", "sub/b.png")
    assert uris(project(tmp_path, images=["."], masks="masks")) == ["a.png", "sub/b.png"]


@pytest.mark.parametrize(
    ("template", "mask"),
    [("{parent}/{stem}_mask.png", "s/a_mask.png"), ("{parent}/{stem}.png", "s/a.png")],
)
def test_masks_beside_their_images_are_no_images(tmp_path: Path, template: str, mask: str) -> None:
    touch(tmp_path, "images/s/a.jpg", f"images/{mask}", "images/s/b.jpg")
    here = project(tmp_path, masks="images", mask_template=template)
    assert uris(here) == ["images/s/a.jpg", "images/s/b.jpg"]
    assert [mask_path(here, found) for found in find_images(here)] == [tmp_path / "images" / mask, None]


@pytest.mark.parametrize(("image", "mask"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_mask_is_found_whichever_way_its_accents_are_written(tmp_path: Path, image: str, mask: str) -> None:
    named = {form: unicodedata.normalize(form, "Straße é.png") for form in ("NFC", "NFD")}
    assert named["NFC"] != named["NFD"]
    touch(tmp_path, f"images/{named[image]}", f"masks/{named[mask]}")
    here = project(tmp_path, masks="masks")
    assert [mask_path(here, found) for found in find_images(here)] == [tmp_path / "masks" / named[mask]]


def test_a_suffix_of_the_images_is_none_of_the_masks(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/x/a_leftImg8bit.png", "masks/x/a_gtFine.png", "images/x/b.png", "images/b_ids.png"
    )
    options = {"mask_template": "{parent}/{stem}_gtFine.png", "image_suffix": "_leftImg8bit"}
    here = project(tmp_path, masks="masks", **options)
    masks = {found.below: mask_path(here, found) for found in find_images(here)}
    assert masks["x/a_leftImg8bit.png"] == tmp_path / "masks" / "x" / "a_gtFine.png"
    touch(tmp_path, "images/x/a_gtFine.png")
    beside = project(tmp_path, masks="images", **options)
    assert uris(beside) == ["images/b_ids.png", "images/x/a_leftImg8bit.png", "images/x/b.png"]


def test_other_files_and_folders_of_systems_are_counted_and_not_read(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.gif", "images/x/c.GIF", "images/d.pdf", "images/README")
    for folder in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".Trash-1000"):
        touch(tmp_path, f"images/{folder}/thumb.png")
    skipped = Skipped()
    assert [found.below for found in find_images(project(tmp_path), skipped)] == ["a.png"]
    assert skipped.lines() == [
        "4 files are no images and were skipped: 2 .gif, 1 without an ending, 1 .pdf.",
        "Folders of the system were skipped: #recycle, $RECYCLE.BIN, .Trash, @eaDir, __MACOSX.",
    ]


def test_an_image_is_never_its_own_mask(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png")
    here = project(tmp_path, masks="images")
    assert [mask_path(here, found) for found in find_images(here)] == [None]


def test_two_images_of_one_name_have_each_their_own_mask(tmp_path: Path) -> None:
    touch(tmp_path, "images/s1/a.jpg", "images/s2/a.jpg", "masks/s1/a.png", "masks/s2/a.png")
    here = project(tmp_path, masks="masks")
    found = [mask_path(here, image) for image in find_images(here)]
    assert found == [tmp_path / "masks/s1/a.png", tmp_path / "masks/s2/a.png"]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no .*images"):
        uris(project(tmp_path))
    touch(tmp_path, "images/a.png")
    with pytest.raises(DataError, match=r"`data.masks` is 'masks'"):
        uris(project(tmp_path, masks="masks"))
    with pytest.raises(DataError, match=r"nowhere"):
        uris(project(tmp_path, images=["nowhere/*.png"]))


def test_groups_and_positions_come_from_the_path(tmp_path: Path) -> None:
    touch(tmp_path, "images/P1_0007.png", "images/P2_0012.png")
    here = project(tmp_path, group_regex=r"(P\d)_", position_regex=r"_(\d+)")
    sequences = Sequences(here)
    assert [sequences.locate(found) for found in find_images(here)] == [("P1", 7), ("P2", 12)]


def test_without_expressions_a_folder_is_a_group_and_positions_are_left_open(tmp_path: Path) -> None:
    touch(tmp_path, "images/s1/a.png", "images/b.png")
    here = project(tmp_path)
    sequences = Sequences(here)
    assert [sequences.locate(found) for found in find_images(here)] == [("images", None), ("images/s1", None)]


def test_an_expression_that_finds_nothing_names_file_and_key(tmp_path: Path) -> None:
    touch(tmp_path, "images/odd.png")
    here = project(tmp_path, group_regex=r"(P\d)_")
    found = next(find_images(here))
    with pytest.raises(DataError, match=r"`data.group_regex` finds no group in images/odd.png"):
        Sequences(here).locate(found)
    here = project(tmp_path, position_regex=r"(o)dd")
    with pytest.raises(DataError, match=r"`data.position_regex` finds no number"):
        Sequences(here).locate(found)


def test_groups_come_from_a_csv_by_any_of_the_images_paths(tmp_path: Path) -> None:
    touch(tmp_path, "images/s/a.png", "images/s/b.png", "images/s/c.png", "images/s/d.png")
    (tmp_path / "groups.csv").write_text(
        "image,group,position\n"
        f"images/s/a.png,one,12345678901234567\ns/b.png,two,\n{tmp_path}/images/s/c.png,two,5\n",
        encoding="utf-8-sig",
    )
    here = project(tmp_path, group_csv="groups.csv")
    sequences, found = Sequences(here), list(find_images(here))
    assert [sequences.locate(image) for image in found[:3]] == [
        ("one", 12345678901234567),
        ("two", None),
        ("two", 5),
    ]
    with pytest.raises(DataError, match=r"images/s/d.png is not in groups.csv"):
        sequences.locate(found[3])


@pytest.mark.parametrize("text", ["file,group\na,b\n", "image,group,position\na,b,third\n", ""])
def test_a_csv_that_is_none_names_itself(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "images/a.png")
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=r"groups\.csv"):
        Sequences(project(tmp_path, group_csv="groups.csv"))


def test_lists_say_which_of_their_lines_name_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "images/s/a.png", "images/s/b.png")
    (tmp_path / "test.txt").write_text("# held out\n\n s/a.png \nimages/s/typo.png\n")
    here = project(tmp_path, splits={"test": {"list": "test.txt"}})
    named = Named(here, here.config.splits.test)
    assert [found.uri for found in find_images(here) if found in named] == ["images/s/a.png"]
    assert named.unmatched() == "1 lines of test.txt name no image: line 4"


@pytest.mark.parametrize("folder", ["images/val", "images/val/*", "./images/val/", "images/v*"])
def test_folders_are_globs_on_the_path(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "images/val/a.png", "images/train/b.png")
    here = project(tmp_path, splits={"test": {"folder": folder}})
    named = Named(here, here.config.splits.test)
    assert [found.uri for found in find_images(here) if found in named] == ["images/val/a.png"]


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt"):
        PathTable(read_list(tmp_path / "none.txt"))

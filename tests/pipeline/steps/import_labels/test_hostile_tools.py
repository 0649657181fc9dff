"""Files from strangers, in every tool's format: each is refused with a line that says why, in bounded time
and memory; the rest of the source goes in, and what was imported before stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from db.queries import failures
from pipeline.errors import DataError
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport
from tests.pipeline.claiming_png import GREY, claiming_png
from tests.pipeline.labeling.annotators_tools import ANNOTATORS_TOOLS
from tests.pipeline.labeling.answered import annotation, submitted
from tests.pipeline.labeling.exported_project import Exported, write_png

GOOD, BAD = "left/frame 1.png", "right/frame 1.png"
SECONDS = 20
"""More than any of these may take, on a busy machine."""


Queue = Callable[[str, Exported], Path]
"""Writes the queue for a tool into a copy of the project, and returns its folder."""


class Attack:
    """An exported project in which one image is labeled already, and a source that a stranger has made."""

    def __init__(self, exported: Exported, folder: Path, queue: Queue) -> None:
        self.exported = exported
        self.folder = folder
        self.before = self._rows()
        self._queue = queue

    def out(self, tool: str) -> tuple[Path, dict[str, str]]:
        """The queue for a tool, and the file stem of each image in it."""
        out = self._queue(tool, self.exported)
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        return out, {line["uri"].removeprefix("images/"): Path(line["image"]).stem for line in lines}

    def finished(self, tool: str, *names: str) -> tuple[Path, dict[str, str]]:
        """What the tool exports when these images are labeled whole, and the others not at all."""
        out, stems = self.out(tool)
        masks = {
            stem: self.exported.truth[name] if name in names else np.full_like(self.exported.truth[name], 255)
            for name, stem in stems.items()
        }
        return ANNOTATORS_TOOLS[tool].exports(out, masks, self.folder), stems

    def take(self, source: Path, **options: Any) -> ImportReport:
        begun = time.monotonic()
        report = import_labels(self.exported.project, self.exported.database, source=source, **options)
        assert time.monotonic() - begun < SECONDS
        self.unharmed()
        return report

    def unharmed(self) -> None:
        """What was there before is there, as it was."""
        assert self._rows()[: len(self.before)] == self.before

    def _rows(self) -> list[tuple[Any, ...]]:
        return [
            (label.id, label.image_id, label.version, label.mask_sha256, label.annotator)
            for label in self.exported.labels()
        ]


@pytest.fixture(scope="module")
def labeled_once(exported_once: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The project in which one image is labeled."""
    root = tmp_path_factory.mktemp("labeled")
    made = exported_once.copied_to(root / "project")
    first = [annotation(made, GOOD, made.truth[GOOD], number=1)]
    import_labels(made.project, made.database, source=submitted(made, root / "a.json", first))
    made.database.close()
    return made


@pytest.fixture(scope="module")
def queue(labeled_once: Exported, tmp_path_factory: pytest.TempPathFactory) -> Queue:
    """A tool's queue is exported once, and copied: no test looks at what an export has written down."""

    @cache
    def exported(tool: str) -> Path:
        made = labeled_once.copied_to(tmp_path_factory.mktemp(tool) / "project")
        folder = export(made.project, made.database, to=tool).folder
        made.database.close()
        return folder

    def copied(tool: str, into: Exported) -> Path:
        source = exported(tool)
        target = into.project.root / "queues" / source.name
        return target if target.exists() else Path(shutil.copytree(source, target, symlinks=True))

    return copied


@pytest.fixture
def attack(labeled_once: Exported, queue: Queue, tmp_path: Path) -> Attack:
    folder = tmp_path / "stranger"
    folder.mkdir()
    return Attack(labeled_once.copied_to(tmp_path / "project"), folder, queue)


def refusal_of(attack: Attack, report: ImportReport, stem: str) -> str:
    """The one line that says why an image was refused; it is on record as well."""
    ((subject, reason),) = [line for line in report.rejected if stem in line[0]]
    with attack.exported.database.session(write=False) as session:
        assert reason in [failure.reason for failure in failures.list_failures(session, step="import")]
    assert all(character.isprintable() for character in subject + reason)
    return f"{subject}: {reason}"


def label_studio(attack: Attack, key: str, value: Any) -> Path:
    """Two annotations; a key of the second one's first region, or of that region's value, is changed."""
    truth = attack.exported.truth
    answers = [
        annotation(attack.exported, name, truth[name], number=number)
        for number, name in enumerate((GOOD, BAD), start=1)
    ]
    region = answers[1]["result"][0]
    (region["value"] if key in region["value"] else region)[key] = value
    return submitted(attack.exported, attack.folder / "export.json", answers)


def bits(*values: tuple[int, int]) -> list[int]:
    """Numbers of so many bits each, as bytes."""
    text = "".join(f"{value:0{count}b}" for value, count in values)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


HEADER = ((7, 5), (2, 4), (3, 4), (7, 4), (15, 4))


PAST_THE_IMAGE = ((96 * 64 * 4, 32), *HEADER, (1, 1), (3, 2), (65535, 16), (255, 8))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("rle", bits((2**32 - 1, 32), *HEADER), id="counts that claim four thousand million"),
        pytest.param("rle", bits(*PAST_THE_IMAGE), id="past the image"),
        pytest.param("rle", [1, 2, 3], id="cut off"),
        pytest.param("rle", [-1, 300, 1e99], id="no bytes"),
        pytest.param("rle", {"a": [[[]]]}, id="no list"),
        pytest.param("original_width", -96, id="negative size"),
        pytest.param("original_height", 10**400, id="endless size"),
        pytest.param("original_width", float("nan"), id="NaN"),
        pytest.param("type", ["brushlabels"], id="a kind that is none"),
        pytest.param("brushlabels", ["<script>alert(1)</script>"], id="script in a class name"),
        pytest.param("brushlabels", ["\x1b[2Jroad\n" * 10_000], id="a class name that paints the terminal"),
        pytest.param("brushlabels", [{"": None}], id="a class that is no name"),
    ],
)
def test_a_label_studio_annotation(attack: Attack, key: str, value: Any) -> None:
    report = attack.take(label_studio(attack, key, value))
    refused = [f"{subject}: {reason}" for subject, reason in report.rejected]
    if refused:  # NaN makes the whole task no JSON
        assert report.unchanged + report.imported <= 1
        assert all(len(line) < 1000 and line.isprintable() for line in refused)
    else:
        assert report.imported == 0
    assert BAD not in [
        name for name, image in attack.exported.images().items() if image.id in _labeled(attack)
    ]


def _labeled(attack: Attack) -> set[int]:
    return {label.image_id for label in attack.exported.labels()}


@pytest.mark.parametrize(
    "count",
    ["9" * 300, "-5", "6145", "1e5", "nan", ""],
    ids=["gigantic", "negative", "past the image", "a float", "NaN", "nothing"],
)
def test_a_cvat_mask_whose_counts_cannot_be(attack: Attack, count: str) -> None:
    refuse_cvat_mask(attack, "rle", count)


@pytest.mark.parametrize("key", ["width", "left", "top", "height"])
@pytest.mark.parametrize("value", ["-1", "99999999999", "NaN", "&#60;script&#62;"])
def test_a_cvat_mask_whose_box_cannot_be(attack: Attack, key: str, value: str) -> None:
    refuse_cvat_mask(attack, key, value)


def refuse_cvat_mask(attack: Attack, key: str, value: str) -> None:
    """Check that an image is refused when an attribute of its first mask has this value."""
    text, stems = cvat_document(attack, GOOD, BAD)
    begin = text.index("<mask", text.index(stems[BAD]))
    begin = text.index(f'{key}="', begin) + len(f'{key}="')
    text = text[:begin] + value + text[text.index('"', begin) :]
    source = attack.folder / "annotations.xml"
    source.write_text(text)
    report = attack.take(source)
    assert "Nothing in it is painted" not in refusal_of(attack, report, stems[BAD])
    assert report.imported + report.unchanged == 1


def cvat_document(attack: Attack, *names: str) -> tuple[str, dict[str, str]]:
    """The XML that CVAT exports when these images are labeled, and the file stem of each image."""
    source, stems = attack.finished("cvat", *names)
    with zipfile.ZipFile(source) as archive:
        return archive.read("annotations.xml").decode(), stems


def test_an_xml_entity_bomb(attack: Attack) -> None:
    source = attack.folder / "annotations.xml"
    entities = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + level)} "{f"&{chr(97 + level)};" * 10}">' for level in range(9)
    )
    source.write_text(f"<?xml version='1.0'?><!DOCTYPE x [{entities}]><annotations>&j;</annotations>")
    with pytest.raises(DataError):
        attack.take(source, tool="cvat")
    attack.unharmed()


def test_an_xml_entity_that_reads_a_file(attack: Attack) -> None:
    text, _ = cvat_document(attack, GOOD)
    secret = '<!DOCTYPE annotations [<!ENTITY secret SYSTEM "file:///etc/passwd">]>'
    source = attack.folder / "annotations.xml"
    source.write_text(secret + text.replace("<version>1.1", "<version>&secret;"))
    with pytest.raises(DataError, match=r"(?i)entit|DOCTYPE|document type"):
        attack.take(source, tool="cvat")
    attack.unharmed()


def test_a_zip_bomb(attack: Attack) -> None:
    source, _ = attack.finished("voc", GOOD)
    _, stems = attack.out("voc")
    bomb = attack.folder / "bomb.zip"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if stems[BAD] not in name or "Class" not in name:
                new.writestr(name, old.read(name))
        with new.open(f"SegmentationClass/{stems[BAD]}.png", "w", force_zip64=True) as member:
            for _ in range(512):
                member.write(bytes(1 << 20))  # half a GiB of nothing
    assert bomb.stat().st_size < 1 << 20
    report = attack.take(bomb)
    assert any(stems[BAD] in subject for subject, _ in report.rejected)
    assert report.imported + report.unchanged == 1


def test_zip_slip(attack: Attack) -> None:
    source, stems = attack.finished("voc", GOOD)
    with warnings.catch_warnings(), zipfile.ZipFile(source, "a") as archive:
        warnings.simplefilter("ignore")  # the same name twice is the point
        mask = archive.read(f"SegmentationClass/{stems[GOOD]}.png")
        above = "../../slipped.png"
        for name in (above, "/tmp/slipped.png", f"SegmentationClass/{above}", "C:\\s.png"):
            archive.writestr(name, mask)
        link = zipfile.ZipInfo(f"SegmentationClass/{stems[BAD]}.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    report = attack.take(source)
    assert report.imported + report.unchanged == 1
    assert report.rejected
    assert not list(attack.folder.parent.rglob("slipped.png"))
    assert not Path("/tmp/slipped.png").exists()


@pytest.mark.parametrize("tool", ["folder", "voc", "cvat-masks", "coco-panoptic"])
def test_a_png_that_claims_a_million_pixels_square(attack: Attack, tool: str) -> None:
    source, stems = attack.finished(tool, GOOD, BAD)
    claim = claiming_png(10**6, 10**6, color=GREY)
    if source.suffix == ".zip":
        copy = attack.folder / "claim.zip"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "w") as new:
            for name in old.namelist():
                bad = name == f"SegmentationClass/{stems[BAD]}.png"
                new.writestr(name, claim if bad else old.read(name))
        source = copy
    else:
        folder = source / "masks" if source.is_dir() else source.with_suffix("")
        (folder / f"{stems[BAD]}.png").write_bytes(claim)
    report = attack.take(source)
    assert len([reason for _, reason in report.rejected if "1000000×1000000" in reason]) == 1
    assert report.imported + report.unchanged == 1


@pytest.mark.parametrize(
    "counts",
    ["9" * 5000, "\x00", "{}", [0, 10**30], [-3, 6147], [float("inf")], [6145], ["1"], None, 7],
    ids=["long", "NUL", "text", "gigantic", "negative", "Infinity", "past", "a text", "null", "a number"],
)
def test_a_coco_run_length_that_cannot_be(attack: Attack, counts: Any) -> None:
    refuse_coco_shape(attack, "counts", counts)


@pytest.mark.parametrize("size", [[-64, -96], [10**9, 10**9], [64.5, 96], "64", [float("nan"), 96], None])
def test_a_coco_size_that_cannot_be(attack: Attack, size: Any) -> None:
    refuse_coco_shape(attack, "size", size)


def refuse_coco_shape(attack: Attack, key: str, value: Any) -> None:
    """Check that a shape is refused when its segmentation has this value."""
    source, stems = attack.finished("coco", GOOD, BAD)
    document = json.loads(source.read_text())
    (image,) = [one for one in document["images"] if stems[BAD] in one["file_name"]]
    shape = next(one for one in document["annotations"] if one["image_id"] == image["id"])
    shape["segmentation"][key] = value
    source.write_text(json.dumps(document))
    with suppress(DataError):  # NaN and Infinity are no JSON: nothing of the file is taken
        assert attack.take(source, tool="coco").rejected
    attack.unharmed()


@pytest.mark.parametrize("tool", ["coco", "coco-panoptic"])
@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "../../etc/passwd", "\x1b]0;owned\x07", "x" * 10**6]
)
def test_a_category_that_the_project_does_not_have(attack: Attack, tool: str, name: str) -> None:
    source, _ = attack.finished(tool, BAD)
    document = json.loads(source.read_text())
    for category in document["categories"]:
        category["name"] = name
    source.write_text(json.dumps(document))
    report = attack.take(source, tool=tool)
    assert report.imported == 0
    assert report.rejected
    assert all(len(reason) < 1000 and reason.isprintable() for _, reason in report.rejected)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.png", "..\\..\\secret.png"])
def test_a_panoptic_file_out_of_the_folder(attack: Attack, path: str) -> None:
    source, stems = attack.finished("coco-panoptic", GOOD, BAD)
    document = json.loads(source.read_text())
    (bad,) = [one for one in document["annotations"] if stems[BAD] in one["file_name"]]
    bad["file_name"] = path
    source.write_text(json.dumps(document))
    report = attack.take(source)
    assert report.rejected
    assert report.imported + report.unchanged == 1


@pytest.mark.parametrize(
    ("tool", "place"),
    [("folder", "masks"), ("coco-panoptic", "annotations/panoptic_default"), ("voc", "SegmentationClass")],
)
def test_a_link_out_of_the_folder(attack: Attack, tool: str, place: str) -> None:
    out, stems = attack.out(tool)
    secret = write_png(attack.folder / "secret.png", np.zeros((64, 96), np.uint8))
    target = out / place / f"{stems[BAD]}.png"
    target.unlink(missing_ok=True)
    target.symlink_to(secret)
    report = attack.take(out, tool=tool)
    assert any("link" in reason for _, reason in report.rejected)
    assert attack.exported.images()[BAD].id not in _labeled(attack)


NESTED = b'[{"annotations": [[]]}]'


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"[" * 200_000, b'{"images":', b"\xff\xfe\x00", b"[1,2", NESTED],
)
@pytest.mark.parametrize("tool", ["label-studio", "coco", "coco-panoptic"])
def test_json_that_says_nothing(attack: Attack, tool: str, content: bytes) -> None:
    source = attack.folder / "export.json"
    source.write_bytes(content)
    with suppress(DataError):
        assert attack.take(source, tool=tool).imported == 0
    attack.unharmed()


HUGE = """
import resource, sys, time
from pathlib import Path
from pipeline.labeling.tools import TOOLS
from pipeline.labeling.encoding import LabelMap
from pipeline.config import DataConfig
from pipeline.errors import DataError

labels = LabelMap(DataConfig(images=["i"], classes=["sky", "road"]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.monotonic()
try:
    answers = sum(1 for _ in TOOLS[sys.argv[1]].read(Path(sys.argv[2]), labels))
    print("answers", answers)
except DataError as error:
    print("refused", error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 150_000, grown
assert time.monotonic() - begun < 60
"""


@pytest.fixture(scope="module", params=["one text", "one list"])
def huge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A JSON file of 300 MB, written once for all tools."""
    source = tmp_path_factory.mktemp("huge") / "huge.json"
    text = request.param == "one text"
    with source.open("wb") as stream:
        stream.write(b'{"images": [{"file_name": "' if text else b'{"annotations": [{"rle": [')
        part = b"a" * (1 << 20) if text else b"1," * (1 << 19)
        for _ in range(300):
            stream.write(part)
        stream.write(b'"}]}' if text else b"1]}]}")
    yield source
    source.unlink()


@pytest.mark.parametrize("tool", ["label-studio", "coco", "coco-panoptic"])
def test_json_of_300_mb_costs_no_memory(huge: Path, tool: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUGE, tool, str(huge)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(("refused", "answers"))

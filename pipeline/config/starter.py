"""The first configuration of a project, with comments, from a few answers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config import IGNORE, ClassConfig, ModelConfig, ProjectConfig, RegionConfig
from pipeline.config.errors import explain, read_yaml
from pipeline.errors import ConfigError, DataError
from pipeline.files import read_plain

_CVAT_LINE = re.compile(r".+:(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*)?:[^:]*:[^:]*", re.ASCII)

HEADER = """\
# A segcurate project. Paths are relative to this file; `~` and `$NAME` in them are replaced, `$$` is a dollar
# sign. An environment variable such as SEGCURATE_DATABASE__URL overrides a key. `segcurate config show`
# prints every setting with its default, `segcurate config schema` explains each one.
"""


def read_label_map(path: Path) -> list[ClassConfig]:
    """Classes from a label map.

    Formats, by ending: `.json` or `.yaml` with a list of names or of `{name, id, color}`, or a mapping from
    name to id or from id to name; `.csv` with a header `name` and, optionally, `id`, `r`, `g`, `b`; `.txt`
    with `r g b name`, `name`, or CVAT's `name:r,g,b:parts:actions` a line. Lines that begin with # are
    comments.

    Raises:
        DataError: the file cannot be read, has another format, or has a class, id or colour twice.
    """
    try:
        entries = _entries(path)
        classes = [ClassConfig.model_validate(item) for item in entries]
    except OSError as error:
        raise DataError(
            f"The label map {path} cannot be read: {error.strerror}.", "Name a readable file."
        ) from error
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        key = problem["loc"][0] if problem["loc"] else ""
        where = f"its `{key}`" if key in ClassConfig.model_fields else "one of its keys"
        raise DataError(
            f"The label map {path} has a class that is not valid, in {where}: {problem['msg']}.",
            "Correct it.",
        ) from None  # the keys of the file are not quoted
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise DataError(
            f"The label map {path} has an unknown format{_place(error)}.",
            "Write JSON or YAML with `name`, `id` and `color`, a CSV, or lines `r g b name`.",
        ) from None  # the error may quote the file
    if len(classes) < 2:
        raise DataError(f"The label map {path} names fewer than two classes.", "Name at least two.")
    for what in ("name", "id", "color"):
        first: dict[object, int] = {}
        for number, item in enumerate(classes, start=1):
            value = getattr(item, what)
            if value is not None and first.setdefault(value, number) != number:
                raise DataError(
                    f"The label map {path} has the same {what} twice: in the classes {first[value]} and "
                    f"{number}.",
                    "Keep one of them.",
                )
    return classes


def starter_config(
    *,
    name: str,
    images: Sequence[str],
    masks: str | None,
    classes: Sequence[ClassConfig],
    architecture: str,
    encoder: str,
    encoder_weights: str,
    cell: int,
    neighbours_alike: bool = True,
    mask_template: str = "{parent}/{stem}.png",
    image_suffix: str = "",
    ignore_index: Sequence[int] = (IGNORE,),
    ignore_color: Sequence[tuple[int, int, int]] = (),
    mask_encoding: str = "auto",
    labels: Mapping[str, str] | None = None,
) -> str:
    """The text of a commented configuration. It is valid.

    Args:
        mask_template, image_suffix: of `data`.
        ignore_index: of `data`; a value that is the id of a class is left out.
        ignore_color, mask_encoding: of `data`.
        labels: the entry of `data.labels`, with `unlabeled`; None without labels that exist.
        neighbours_alike: whether images beside each other look alike. Then splits and intervals go by blocks
            of neighbours, otherwise by single images.

    Raises:
        ConfigError: an answer is not valid, or the classes cannot be a project's.
    """
    try:
        ModelConfig.model_validate(
            {"architecture": architecture, "encoder": encoder, "encoder_weights": encoder_weights}
        )
        RegionConfig(cell=cell)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{problem['loc'][0]}: {problem['msg']}.", "Answer with one of these.") from error
    masks_line = (
        f"masks: {_inline(masks)}  # the masks that exist already, found by mask_template"
        if masks
        else "# masks: masks  # the masks that exist already, found by mask_template"
    )
    if labels is not None:
        masks_line = (
            f"labels: {_inline(dict(labels))}  # labels that exist already\n"
            "  # `unlabeled`: what pixels are where nothing is drawn, a class or `ignore` (not labeled)\n"
            f"  {masks_line}"
        )
    block, guard = (10, 1) if neighbours_alike else (1, 0)
    ids = {index if item.id is None else item.id for index, item in enumerate(classes)}
    void = [value for value in ignore_index if value not in ids]
    ignored = void[0] if len(void) == 1 else void
    suffix_line = f"  image_suffix: {_inline(image_suffix)}\n" if image_suffix else ""
    colors_line = f"  ignore_color: {_inline(list(map(list, ignore_color)))}\n" if ignore_color else ""
    class_lines = "\n".join(f"    - {_inline(_class_entry(item))}" for item in classes)
    text = f"""{HEADER}
name: {_inline(name)}

database:
  url: sqlite:///.segcurate/segcurate.db

data:
  images: {_inline(list(images))}  # folders, globs or files
  {masks_line}
  mask_template: {_inline(mask_template)}
{suffix_line}  mask_encoding: {mask_encoding}  # auto, index, palette or rgb
  classes:
{class_lines}
  ignore_index: {ignored}  # the value in an index mask that means "not labeled"
{colors_line}  # group_regex: "^(seq[0-9]+)"  # neighbouring frames, one patient, one site: they share a split
  independent: {_inline(not neighbours_alike)}  # whether images resemble others as much as their neighbours

# Images of calibration and test are never selected or trained on. A split waits until it has `minimum_units`
# independent units with masks, and each class; it grows by versions when masks are added.
splits:
  # block: images beside each other that stay together; guard: images left out on each side of a block.
  calibration: {{fraction: 0.15, by: block, block: {block}, guard: {guard}}}
  test: {{fraction: 0.2, by: block, block: {block}, guard: {guard}}}
  initial: {{}}  # the first labeled set; by default every pool image that has a mask
  minimum_units: 10

model:
  architecture: {_inline(architecture)}
  encoder: {_inline(encoder)}
  encoder_weights: {_inline(encoder_weights)}  # imagenet, none, or a safetensors file

training:
  iterations: 2000
  batch_size: 8
  crop: [256, 256]
  transforms:
    - {{name: HorizontalFlip, p: 0.5}}
    - {{name: RandomBrightnessContrast, p: 0.5}}

evaluation:
  block: {block}  # neighbours that are one independent unit, at least: intervals are over units, never pixels

calibration:
  calibrator: auto  # the simplest that is as good as the best on held-out images, or none

scoring:
  sampler: mc_dropout  # or tta, head_ensemble (with `model: {{heads: 5}}`), ensemble, none
  samples: 20
  regions: {{kind: grid, cell: {cell}}}  # or superpixel, segment, file, image

selection:
  strategy: stratified
  unit: region
  budget: 100
  audit_fraction: 0.1  # the part of every queue that is drawn uniformly at random
"""
    _check(text)
    return text


def _check(text: str) -> None:
    """Refuse a configuration before it is written."""
    try:
        ProjectConfig(**yaml.safe_load(text))
    except ValidationError as error:
        raise ConfigError(
            explain(error, ProjectConfig, path=Path("What these answers make")),
            "Correct them; nothing has been written.",
        ) from None


def _class_entry(item: ClassConfig) -> Any:
    entry = item.model_dump(exclude_none=True)
    if set(entry) == {"name"}:
        return item.name
    if "color" in entry:
        entry["color"] = list(entry["color"])
    return entry


def _inline(value: Any) -> str:
    """YAML on one line: the JSON of strings, lists and mappings is also YAML."""
    return json.dumps(value, ensure_ascii=False)


def _place(error: Exception) -> str:
    """Where an error of a label map is, and its kind, without the text."""
    if isinstance(error, json.JSONDecodeError):
        return f": line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return ": it is not UTF-8"
    if isinstance(error, RecursionError):
        return ": it is nested too deeply"
    return ""


def _entries(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _listed(read_yaml(path, remedy="Name a readable file."))
    text = read_plain(path).decode("utf-8-sig")
    if suffix == ".json":
        return _listed(json.loads(text))
    if suffix == ".csv":
        return [_csv_entry(row) for row in csv.DictReader(io.StringIO("\n".join(_lines(text))))]
    lines = _lines(text)
    as_cvat = bool(lines) and all(_CVAT_LINE.fullmatch(line) for line in lines)
    return [_cvat_entry(line) if as_cvat else _line_entry(line) for line in lines]


def _lines(text: str) -> list[str]:
    """The lines without comments and empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _cvat_entry(line: str) -> dict[str, Any]:
    """`name:r,g,b:parts:actions`; a name may have colons."""
    name, color, _, _ = line.rsplit(":", 3)
    return {"name": name, "color": tuple(map(int, color.split(",")))} if color else {"name": name}


def _listed(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, dict) and "classes" in document:
        document = document["classes"]
    if isinstance(document, dict):
        if all(str(key).isdecimal() and isinstance(value, str) for key, value in document.items()):
            document = {name: int(key) for key, name in document.items()}
        return [{"name": str(name), "id": value} for name, value in document.items()]
    return [{"name": item} if isinstance(item, str) else dict(item) for item in document]


def _csv_entry(row: dict[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": row["name"].strip()}
    if row.get("id"):
        entry["id"] = int(row["id"])
    if row.get("r"):
        entry["color"] = (int(row["r"]), int(row["g"]), int(row["b"]))
    return entry


def _line_entry(line: str) -> dict[str, Any]:
    words = line.split(maxsplit=3)
    if len(words) == 4 and all(word.isdigit() for word in words[:3]):
        return {"name": words[3].strip(), "color": tuple(int(word) for word in words[:3])}
    return {"name": line.strip()}

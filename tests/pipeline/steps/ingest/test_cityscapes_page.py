"""The settings for Cityscapes in docs/labeling.md read a folder of its layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import yaml
from PIL import Image as Picture

from pipeline.config import IGNORE
from tests.pipeline.steps.ingest.folder import Folder

PAGE = Path(__file__).parents[4] / "docs" / "labeling.md"


def test_each_class_of_the_page_is_read_and_the_rest_is_void(tmp_path: Path) -> None:
    (text,) = re.findall(
        r"```yaml\n(data:\n  images: leftImg8bit.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    data = yaml.safe_load(text)["data"]
    folder = Folder(tmp_path / "cityscapes")
    for number in range(8):
        name = f"train/aachen/aachen_{number:06d}_000019"
        image = folder.image("unused.png")
        (folder.root / "leftImg8bit" / "train" / "aachen").mkdir(parents=True, exist_ok=True)
        image.rename(folder.root / "leftImg8bit" / f"{name}_leftImg8bit.png")
        mask = folder.root / "gtFine" / f"{name}_gtFine_labelIds.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        values = np.resize(np.arange(34, dtype=np.uint8), (16, 24))
        Picture.fromarray(values).save(mask)
        Picture.fromarray(values * 7).save(mask.with_name(mask.name.replace("labelIds", "color")))
    project = folder.project(**data)
    ids = [item.id for item in project.config.data.classes]
    assert len(ids) == 19
    assert sorted([*(id_ for id_ in ids if id_ is not None), *project.config.data.ignore_index]) == [
        *range(34),
        IGNORE,
    ]
    block = {"fraction": 0.25, "by": "block", "block": 1, "guard": 0}
    report = folder.ingest(splits={"test": block, "calibration": block}, **data)
    assert (report.masks, report.failures) == (8, 0)

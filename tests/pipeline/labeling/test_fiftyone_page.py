"""The lines that the documentation gives to FiftyOne's users, run against a stand-in for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.labeling.exchange import Annotation
from pipeline.labeling.folder import FOLDER
from tests.pipeline.labeling.small_queue import label_map, shapes, write_queue

PAGE = Path(__file__).parents[3] / "docs" / "labeling.md"


class Sample(dict[str, Any]):
    """A sample: a file, and fields."""

    def __init__(self, filepath: str, **fields: Any) -> None:
        super().__init__(filepath=filepath, **fields)


class Dataset:
    """As much of FiftyOne's as the page uses."""

    def __init__(self, name: str, persistent: bool = False) -> None:
        self.name = name
        self.default_mask_targets: dict[int, str] = {}
        self.samples: list[Sample] = []

    def add_samples(self, samples: Iterable[Sample]) -> None:
        self.samples += samples

    def sort_by(self, field: str) -> list[Sample]:
        return sorted(self.samples, key=lambda sample: sample[field])

    def exists(self, field: str) -> list[Sample]:
        return [sample for sample in self.samples if field in sample]


def stand_in() -> ModuleType:
    module = ModuleType("fiftyone")
    labels = dict.fromkeys(("Detection", "Detections", "Segmentation", "Heatmap"), SimpleNamespace)
    vars(module).update(
        Dataset=Dataset, Sample=Sample, launch_app=lambda view: SimpleNamespace(view=view), **labels
    )
    return module


def blocks() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition("## FiftyOne\n")[2]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_page_loads_an_exported_folder_and_brings_masks_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [shapes(np.random.default_rng(seed), height=20, width=30) for seed in range(3)]
    folder = write_queue(FOLDER, tmp_path, masks)
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in())
    load, back = blocks()
    names: dict[str, Any] = {}
    exec(load.replace("queues/round-03", str(folder)), names)

    dataset: Dataset = names["dataset"]
    labels = label_map()
    assert dataset.default_mask_targets == dict(zip(labels.ids, labels.names, strict=True))
    assert [sample["rank"] for sample in names["session"].view] == [1, 2, 3]
    for sample, mask in zip(dataset.samples, masks, strict=True):
        assert Image.open(sample["filepath"]).size == (30, 20)
        assert np.array_equal(sample["proposal"].mask, mask)
        look = np.asarray(Image.open(sample["look"].map_path))
        assert (look.shape, look.dtype, sample["look"].range) == ((5, 8), np.uint8, [0, 255])
        assert [region.bounding_box for region in sample["regions"].detections] == [[0, 0, 1, 1]]
        assert sample["entropy"] == 0.5

    dataset.samples[0]["corrected"] = SimpleNamespace(mask=np.full((20, 30), 3), mask_path=None)
    path = tmp_path / "corrected.png"
    Image.fromarray(np.full((20, 30), 4, np.uint8)).save(path)
    dataset.samples[2]["corrected"] = SimpleNamespace(mask=None, mask_path=str(path))
    exec(back, names)
    first, third = FOLDER.read(folder, labels)
    assert isinstance(first, Annotation)
    assert isinstance(third, Annotation)
    assert (first.read(30, 20).mask == 3).all()
    assert (third.read(30, 20).mask == 4).all()

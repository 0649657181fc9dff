"""The demo's slices and masks are real, fit each other, and are written the same twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import demo
from pipeline.data.project import load_project
from pipeline.errors import DataError
from pipeline.regions.shapes import region_boxes

needs_nilearn = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="needs the extra `demo`"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.write_demo(folder)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


@needs_nilearn
def test_each_slice_has_a_mask_of_all_tissues(folder: Path) -> None:
    images, masks = sorted((folder / "images").iterdir()), sorted((folder / "masks").iterdir())
    assert [path.name for path in images] == [path.name for path in masks]
    assert len(images) == len(demo.SLICES)
    middle = pixels(folder / "images" / "axial_080.png")
    mask = pixels(folder / "masks" / "axial_080.png")
    assert middle.shape == mask.shape == (demo.HEIGHT, demo.WIDTH)
    assert np.unique(mask).tolist() == [demo.BACKGROUND, demo.FLUID, demo.GREY, demo.WHITE]
    mean = [float(middle[mask == tissue].mean()) for tissue in range(4)]
    assert mean == sorted(mean)  # T1: white matter is the brightest
    assert (middle[mask == demo.BACKGROUND] == 0).all()


@needs_nilearn
def test_the_brain_stands_upright_in_the_middle(folder: Path) -> None:
    mask = pixels(folder / "masks" / "axial_080.png") > 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert rows[-1] - rows[0] > columns[-1] - columns[0]  # front to back is longer than ear to ear
    assert abs((columns[0] + columns[-1]) / 2 - demo.WIDTH / 2) < 4
    cerebellum = pixels(folder / "masks" / "axial_020.png") > 0
    assert np.flatnonzero(cerebellum.any(axis=1)).mean() > demo.HEIGHT / 2  # at the back, so below


@needs_nilearn
def test_writing_again_changes_nothing_and_keeps_a_changed_configuration(folder: Path) -> None:
    config = folder / "segcurate.yaml"
    before = (folder / "images" / "axial_080.png").read_bytes()
    config.write_text(config.read_text() + "# mine\n")
    demo.write_demo(folder)
    assert (folder / "images" / "axial_080.png").read_bytes() == before
    assert config.read_text().endswith("# mine\n")


@needs_nilearn
def test_the_configuration_is_valid_and_cells_tile_a_slice(folder: Path) -> None:
    project = load_project(folder / "segcurate.yaml")
    assert project.config.data.class_names[demo.WHITE] == "white matter"
    boxes = region_boxes(project.config.scoring.regions, demo.WIDTH, demo.HEIGHT)
    assert {tuple(box[2:]) for box in boxes.tolist()} == {(32, 32)}
    assert project.config.model.encoder_weights == "none"  # the demo works offline


def test_without_nilearn_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"segcurate\[demo\]"):
        demo.write_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []

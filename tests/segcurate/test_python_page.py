"""The code of docs/python.md runs from its first line to its last."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml

from segcurate import NotYourTurn, Project, UserError
from tests.factories import TINY
from tests.flows.test_labels_that_exist import write_squares

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of squares, their labels, and a configuration."""
    root = tmp_path_factory.mktemp("squares")
    write_squares(root, 40)
    held_out = {"by": "block", "block": 1, "guard": 0, "fraction": 0.2}
    document: dict[str, Any] = {
        "name": "squares",
        "device": "cpu",
        "data": {
            "images": ["pictures"],
            "labels": {"format": "coco", "path": "annotations.json", "unlabeled": "background"},
            "classes": ["background", "square"],
            "independent": True,
        },
        "splits": {
            "calibration": held_out,
            "test": held_out,
            "minimum_units": 3,
            "initial": {"count": 6},
        },
        "model": TINY,
        "training": {"iterations": 2, "batch_size": 2, "crop": [32, 32], "transforms": []},
        "scoring": {"samples": 2, "workers": 0, "regions": {"cell": 16}, "tile": 64, "overlap": 16},
        "evaluation": {"block": 1},
    }
    (root / "segcurate.yaml").write_text(yaml.safe_dump(document))
    return root


@pytest.fixture(scope="module")
def ran(ready: Path) -> dict[str, Any]:
    """The names that the page's code has defined at its end."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    names: dict[str, Any] = {}
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.chdir(ready)
        exec(compile(code, str(PAGE), "exec"), names)
    return names | {"said": said.getvalue()}


def test_the_page_runs_to_its_end(ran: dict[str, Any]) -> None:
    assert ran["report"].found == 40
    assert "Found 40 image files, 40 of them new" in ran["said"]
    assert "`segcurate train` cannot run now" in ran["said"]
    assert "\nsegcurate select\n" in ran["said"]
    assert len(ran["draft"].items) == 5
    assert (ran["exported"].folder / "annotations").is_dir()


def test_scores_are_those_of_the_store(ran: dict[str, Any], ready: Path) -> None:
    regions, scored = ran["regions"], ran["scored"]
    assert isinstance(regions, pandas.DataFrame)
    assert set(regions["predicted_class"].cat.categories) == {"background", "square"}
    assert len(regions) == len(scored) * 3 * 3
    assert regions[["x", "y"]].max().tolist() == [32, 32]
    assert regions["entropy"].between(0, 1).all()
    for image, peak in zip(scored["image"], scored["entropy_max"], strict=True):
        assert np.isclose(regions.loc[regions["image"] == image, "entropy"].max(), peak)


def test_images_have_their_splits_and_labels(ran: dict[str, Any]) -> None:
    images = ran["images"]
    assert images["has_mask"].all()
    assert images["labeled"].sum() == 6
    assert set(images.loc[images["labeled"], "split"]) == {"pool"}
    assert (images["split"] == "test").sum() == 8


def test_a_heat_map_has_the_values_of_its_measure(ran: dict[str, Any]) -> None:
    entropy = ran["entropy"]
    assert entropy.dtype == np.float32
    assert entropy.shape == (10, 12)
    assert 0 < entropy.max() <= 1


def test_what_is_not_there_is_said(ran: dict[str, Any], ready: Path) -> None:
    del ran
    with Project.open(ready / "segcurate.yaml") as project:
        assert project.next_command.startswith("segcurate import")
        with pytest.raises(UserError, match="There is no image 'nowhere.png'"):
            project.heatmap("nowhere.png")
        scored = project.scores("images")["image"].iloc[0]
        with pytest.raises(UserError, match="no heat map of 'margin'"):
            project.heatmap(scored, "margin")
        with pytest.raises(NotYourTurn):
            project.train()
        held_out = project.images().query("split == 'test'")["image"].iloc[0]
        with pytest.raises(UserError, match="is not scored"):
            project.heatmap(held_out)


def test_a_missing_configuration_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no configuration"):
        Project.open(tmp_path / "segcurate.yaml")

"""Masks and maps of images from elsewhere: those of the model, at each image's own size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from db.tables import Failure
from db.tables import Image as ImageRow
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.steps.predict import predict
from pipeline.steps.ready import measures_named
from tests.conftest import CLASSES, draw, opened
from tests.factories import fetch

pytestmark = pytest.mark.slow


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Images of two folders and sizes, two of one stem, and a file that is none."""
    folder = tmp_path / "elsewhere"
    draw(folder, None, name="a.png", seed=90)
    draw(folder / "deep", None, name="b.png", seed=91, size=(50, 37))
    draw(folder / "deep", None, name="c.png", seed=92)
    shutil.copy(folder / "deep" / "c.png", folder / "deep" / "c.bmp.png")
    Image.open(folder / "deep" / "c.png").save(folder / "deep" / "c.tif")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_every_image_of_a_folder_gets_a_mask_and_the_maps_that_are_asked_for(
    trained: Path, elsewhere: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with opened(trained) as (project, database):
        before = sorted(fetch(database, ImageRow.uri)), fetch(database, Failure)
        report = predict(
            project, database, source=str(elsewhere), folder=out, measures=["entropy"], per_class=True
        )
        assert (sorted(fetch(database, ImageRow.uri)), fetch(database, Failure)) == before
    assert (report.model, report.images) == ("r01", 5)
    assert [Path(name).name for name, _ in report.failed] == ["broken.png"]
    assert "not predicted" in report.warnings[0]
    masks = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert {"a.png", "deep/b.png", "deep/c.png.png", "deep/c.tif.png", "deep/c.bmp.png"} <= masks
    assert {"a_entropy.png", "a_softmax_0.png", f"a_softmax_{len(CLASSES) - 1}.png"} <= masks
    with Image.open(out / "deep" / "b.png") as mask, Image.open(out / "deep" / "b_entropy.png") as entropy:
        assert mask.size == entropy.size == (50, 37)
        assert (mask.mode, entropy.info["measure"]) == ("P", "entropy")
        assert set(np.unique(np.asarray(mask))) <= set(range(len(CLASSES)))
    shares = [np.asarray(Image.open(out / f"a_softmax_{index}.png"), float) for index in range(len(CLASSES))]
    np.testing.assert_allclose(np.sum(shares, axis=0), 255, atol=2)
    clear = (
        np.ptp(np.sort(shares, axis=0)[-2:], axis=0) > 2
    )  # steps of 8 bits, by which the first class leads
    assert clear.mean() > 0.1
    assert (np.argmax(shares, axis=0) == np.asarray(Image.open(out / "a.png")))[clear].all()
    names = [one["name"] for one in json.loads((out / "labelmap.json").read_text())["classes"]]
    assert names == [one if isinstance(one, str) else one["name"] for one in CLASSES]


def test_predicted_again_results_are_replaced_and_are_no_images(trained: Path, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", None, name="a.png", seed=1)
    out = tmp_path / "pictures" / "out"
    with opened(trained) as (project, database):
        for _ in range(2):
            found = predict(project, database, source=str(tmp_path / "pictures"), folder=out)
            assert found.images == 1
        (out / "labelmap.json").unlink()
        with pytest.raises(UserError, match="contains other files"):
            predict(project, database, source=str(tmp_path / "pictures"), folder=out)


def test_the_masks_are_those_that_the_evaluation_measures(trained: Path, tmp_path: Path) -> None:
    """IoU of the masks written for the test split is that of the stored evaluation of a single pass."""
    out = tmp_path / "out"
    with opened(trained) as (project, database):
        predict(project, database, source=str(trained / "images"), folder=out)
        tests = [Path(row.uri) for row in fetch(database, ImageRow) if row.split == "test"]
        with database.session(write=False) as session:
            from db.queries import evaluations
            from db.tables import Model

            metrics = evaluations.metrics_of(
                session,
                model_id=session.query(Model).one().id,
                split="test",
                sampler="none",
                calibrated=True,
            )
    confusion = np.zeros((len(CLASSES), len(CLASSES)))
    for path in tests:
        found = np.asarray(Image.open(out / f"{path.stem}.png"))
        true = np.asarray(Image.open(trained / "masks" / path.name))
        known = true < len(CLASSES)
        np.add.at(confusion, (true[known], found[known]), 1)
    diagonal = np.diag(confusion)
    ious = diagonal / (confusion.sum(0) + confusion.sum(1) - diagonal)
    assert np.nanmean(ious) == pytest.approx(metrics["miou", -1].value, abs=1e-6)


def test_what_cannot_be_predicted_says_why(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with opened(trained) as (project, database):
        with pytest.raises(UserError, match="There are no images in"):
            predict(project, database, source=str(tmp_path / "empty"), folder=tmp_path / "out")
        with pytest.raises(DataError, match="There is no .*nowhere"):
            predict(project, database, source=str(tmp_path / "nowhere"), folder=tmp_path / "out")
        with pytest.raises(ConfigError, match="mutual_information needs samples"):
            predict(
                project,
                database,
                source=str(tmp_path),
                folder=tmp_path / "out",
                measures=["mutual_information"],
            )
        with pytest.raises(UserError, match="no model 'r09'|r09"):
            predict(project, database, source=str(tmp_path), folder=tmp_path / "out", model="r09")
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a.png").write_bytes(b"no image")
        with pytest.raises(UserError, match="The only image cannot be read"):
            predict(project, database, source=str(tmp_path / "bad"), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="There is no measure 'entropie'"):
        measures_named("entropie")


def test_results_of_two_images_never_meet(trained: Path, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    for seed, name in enumerate(("a.png", "a_entropy.png", "b.png")):
        draw(pictures, None, name=name, seed=seed)
    with opened(trained) as (project, database):
        predict(project, database, source=str(pictures), folder=out, measures=["entropy"])
        found = sorted(path.name for path in out.glob("*.png"))
        shutil.copy(pictures / "a.png", pictures / "a.png.png")
        shutil.copy(pictures / "a.png", pictures / "a.tif.png")
        Image.open(pictures / "a.png").save(pictures / "a.tif")
        with pytest.raises(UserError, match=r"a.png and a.png.png would have results of one name"):
            predict(project, database, source=str(pictures), folder=out)
    assert found == [
        *("a.png.png", "a.png_entropy.png", "a_entropy.png.png", "a_entropy.png_entropy.png"),
        *("b.png", "b_entropy.png"),
    ]


def test_no_result_lies_among_the_images_of_the_project(trained: Path) -> None:
    with opened(trained) as (project, database), pytest.raises(UserError, match="the next ingest would take"):
        predict(project, database, source=str(trained / "images"), folder=trained / "images" / "predictions")
    assert not (trained / "images" / "predictions").exists()

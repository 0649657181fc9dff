"""From a stored model to a predictor: members of an ensemble by name, and what a score's provenance holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from db.tables import Image, Model
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import ModelConfig, ScoringConfig
from pipeline.data.loading import Batch
from pipeline.data.project import Project
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import load_model, read_card, save_model
from pipeline.steps.score.scorer import describe_scorer, open_scorer
from pipeline.uncertainty.served_model import open_model
from tests.factories import TINY, configured, fetch_one, make_pool

CPU = torch.device("cpu")


def pool_of(root: Path, **scoring: Any) -> tuple[Project, Model]:
    """A project with a serving model `r01`."""
    project, database = make_pool(root, [(64, 48)], scoring=scoring)
    return project, fetch_one(database, Model)


def other_model(project: Project, name: str, **changes: Any) -> Path:
    """Another model with weights of its own beside the serving one."""
    card = read_card(project.workdir / "models/r01").model_copy(update=changes)
    torch.manual_seed(7)
    classes = len(card.class_names)
    segmenter = build_segmenter(card.model, num_classes=classes, channels=card.channels, root=Path())
    folder = project.workdir / "models" / name
    save_model(folder, segmenter, card)
    return folder


def test_an_ensemble_is_the_serving_model_and_others_by_name_or_folder(tmp_path: Path) -> None:
    project, model = pool_of(tmp_path / "pool", sampler="ensemble", ensemble=["r01", "r02", "away/model"])
    other_model(project, "r02")
    shutil.move(other_model(project, "r03"), project.root / "away/model")
    served = open_model(project, model.checkpoint_uri, calibrators=Calibrators())
    predictor, card = served.predictor, served.card
    assert predictor.sampler is not None
    assert predictor.sampler.samples == 3
    image = torch.randn(1, 3, 64, 64)
    probabilities = []
    for folder in ("models/r01", "models/r02", "models/r02"):  # r03 has the weights of r02
        segmenter, _ = load_model(project.workdir / folder, device=CPU, class_names=card.class_names)
        with torch.no_grad():
            probabilities.append(segmenter.tail(segmenter.trunk(image)).softmax(dim=1))
    found = predictor.predict(image).probability
    torch.testing.assert_close(found, torch.stack(probabilities).mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["r09"], "neither a model"), (["r02", "r02"], "twice"), (["r01"], "no other model")],
)
def test_an_ensemble_that_is_none_is_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    project, model = pool_of(tmp_path, sampler="ensemble", ensemble=names)
    other_model(project, "r02")
    with pytest.raises(ConfigError, match=reason):
        open_model(project, model.checkpoint_uri, calibrators=Calibrators())


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ["class 0", "class 1", "class 2", "another"]},
        {"channels": 4, "mean": [0.5] * 4, "std": [0.5] * 4},
    ],
)
def test_a_member_with_other_classes_or_channels_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    project, model = pool_of(tmp_path, sampler="ensemble", ensemble=["r02"])
    other_model(project, "r02", **changes)
    with pytest.raises(CheckpointError, match=r"classes|channels"):
        open_model(project, model.checkpoint_uri, calibrators=Calibrators())


def test_provenance_changes_with_whatever_the_samples_depend_on_and_nothing_else(tmp_path: Path) -> None:
    project, _ = pool_of(tmp_path)
    card = read_card(project.workdir / "models/r01")
    deep = card.model_copy(update={"model": card.model.model_copy(update={"placement": "deep"})})

    def described(card: Any = card, **scoring: Any) -> dict[str, Any]:
        config = ScoringConfig.model_validate(scoring)
        return describe_scorer(config, card=card, calibrators=Calibrators())

    assert described(sampler="mc_dropout") != described(deep, sampler="mc_dropout")
    assert described(sampler="mc_dropout") != described(sampler="mc_dropout", samples=21)
    assert described(sampler="tta") != described(sampler="tta", views={"flip": False})
    assert described(sampler="tta") == described(deep, sampler="tta", samples=21, seed=3)
    assert described(sampler="tta")["confidence"] == "mean"
    assert "confidence" not in described(sampler="none")
    assert described(sampler="none") == described(sampler="none", samples=21, views={"flip": False})


def test_masks_are_predicted_at_the_networks_own_resolution_and_only_scores_at_every_fourth_pixel(
    tmp_path: Path,
) -> None:
    project, model = pool_of(tmp_path, resolution="quarter")
    torch.manual_seed(7)
    card = read_card(project.workdir / "models/r01")
    other = {"architecture": "unet", "decoder": {"decoder_channels": [16, 8, 8, 4, 4]}}
    config = card.model.model_copy(update=other)
    unet = build_segmenter(config, num_classes=len(card.class_names), channels=3, root=Path()).eval()
    save_model(project.workdir / "models/r01", unet, card.model_copy(update={"model": config}))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = unet(image).softmax(dim=1)
    for_masks, for_scores = (
        open_model(
            project, model.checkpoint_uri, calibrators=Calibrators(), sampler="none", for_scores=for_scores
        ).predictor
        for for_scores in (False, True)
    )
    assert (for_masks.cell, for_scores.cell) == (1, 4)
    torch.testing.assert_close(for_masks.predict(image).probability, expected, atol=1e-5, rtol=1e-4)


def test_the_maps_of_a_frozen_encoder_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    frozen = ModelConfig.model_validate(TINY | {"freeze_encoder": True})
    made = make_pool(tmp_path, [(64, 48)] * 3, scoring={"sampler": "none"}, model=frozen)
    asked = configured(made.project, model={"cache_features": "auto"})
    plain, cached = open_scorer(*made), open_scorer(asked, made.database)
    assert plain.model.predictor.cache is None
    assert "encoder_maps" not in plain.document
    assert cached.document == {**plain.document, "encoder_maps": "float16"}
    with made.database.session(write=False) as session:
        refs = [asked.ref(row) for row in session.scalars(select(Image))]
    for scorer, computed in ((cached, 3), (open_scorer(asked, made.database), 0)):
        for batch in scorer.model.batches(refs):
            assert isinstance(batch, Batch)
            scorer.model.predictor.predict(batch.images)
        cache = scorer.model.predictor.cache
        assert cache is not None
        assert cache.computed == computed
    assert (asked.workdir / "features").is_dir()


def test_an_encoder_that_was_trained_keeps_no_maps(tmp_path: Path) -> None:
    project, database = make_pool(tmp_path, [(64, 48)], scoring={"sampler": "none"})
    asked = configured(project, model={"freeze_encoder": True, "cache_features": "always"})
    assert open_scorer(asked, database).model.predictor.cache is None

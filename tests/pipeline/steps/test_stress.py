"""What a stress test says, and that it can say no."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from db.queries.evaluations import assessment_of
from pipeline.config import EvaluationConfig
from pipeline.data.input_range import InputRange
from pipeline.errors import UserError
from pipeline.evaluation.stress_verdicts import BASES, METRICS, STRESSES, Condition, Sample, Verdict, verdicts
from pipeline.model.checkpoints import read_card, save_model
from pipeline.steps.stress import stress
from tests.factories import ask
from tests.textures import add_images, add_trained_model, make_segmenter, textured_project

IMAGES, BLOCKS = 24, 8
BLOCK = np.arange(IMAGES) % BLOCKS


def sample() -> Sample:
    return Sample(BLOCK, EvaluationConfig(resamples=500, confidence=0.95), seed=0)


def results(
    changes: dict[Condition, dict[str, float]], *, scatter: float = 0.01
) -> dict[Condition, dict[str, np.ndarray]]:
    """A value an image; each condition differs from the unchanged images by a number a metric."""
    generator = np.random.default_rng(0)
    usual = {"accuracy": 0.9, "confidence": 0.95, "entropy": 0.1, "mutual_information": 0.02, "energy": -8.0}
    plain = {metric: usual[metric] + scatter * generator.normal(size=IMAGES) for metric in METRICS}
    found = dict.fromkeys(BASES.values(), plain)
    for condition, moved in changes.items():
        found[condition] = {
            metric: plain[metric] + moved.get(metric, 0.0) + scatter * generator.normal(size=IMAGES)
            for metric in METRICS
        }
    return found


def verdict(found: dict[Condition, dict[str, np.ndarray]]) -> Verdict:
    (said,) = verdicts(found, sample(), guarded="the guard looked")
    return said


def condition(kind: str, *, last: bool = True) -> Condition:
    mine = [one for one in STRESSES if one.kind == kind]
    return mine[-1 if last else 0]


def test_a_mean_over_images_is_that_of_the_defined_values_and_its_interval_that_of_blocks() -> None:
    values = np.random.default_rng(0).normal(size=IMAGES) + BLOCK
    values[3] = np.nan
    found = sample().mean(values)
    assert found.value == pytest.approx(np.nanmean(values))
    of_images = np.nanstd(values) / np.sqrt(IMAGES - 1)
    assert found.low < found.value - 2 * of_images  # neighbours agree, so it is wider than that of images
    assert found.high > found.value + 2 * of_images


def test_separation_is_the_auroc_of_images() -> None:
    generator = np.random.default_rng(1)
    known, strange = generator.normal(size=IMAGES).round(1), generator.normal(0.8, 1, IMAGES).round(1)
    found = sample().separation(known, strange)
    expected = roc_auc_score([0] * IMAGES + [1] * IMAGES, np.r_[known, strange])
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("kind", ["blur", "night_gamma", "fgsm", "resolution"])
def test_confidence_that_stays_where_accuracy_falls_fails(kind: str) -> None:
    worst = condition(kind)
    said = verdict(results({worst: {"accuracy": -0.3, "confidence": 0.005}}))
    assert (said.kind, said.ok) == (kind, False)
    assert "does not fall" in said.text
    said = verdict(results({worst: {"accuracy": -0.3, "confidence": -0.25}}))
    assert said.ok
    assert "0.90 to 0.60" in said.text


def test_confidence_that_falls_far_less_than_accuracy_fails() -> None:
    said = verdict(results({condition("blur"): {"accuracy": -0.4, "confidence": -0.1}}))
    assert not said.ok
    assert "by only 26% of what accuracy loses" in said.text


def test_confidence_may_stay_where_accuracy_stays() -> None:
    said = verdict(results({condition("blur"): {"accuracy": 0.0, "confidence": 0.0}}))
    assert said.ok
    assert "Accuracy does not fall" in said.text


@pytest.mark.parametrize(("rise", "ok"), [(0.04, False), (-0.2, True)])
def test_confidence_that_rises_with_magnified_inputs_fails(rise: float, ok: bool) -> None:
    said = verdict(results({condition("magnify"): {"confidence": rise, "accuracy": -0.3}}))
    assert said.ok is ok
    assert ("no temperature corrects that" in said.text) is not ok
    assert "the guard looked" in said.text


@pytest.mark.parametrize(("energy", "ok"), [(4.0, True), (0.0, False)])
def test_noise_must_rank_in_the_top_of_the_energy_score(energy: float, ok: bool) -> None:
    said = verdict(results({condition("noise"): {"energy": energy, "accuracy": np.nan}}, scatter=0.3))
    assert said.ok is ok
    assert ("do not rank" in said.text) is not ok


def test_a_stress_test_is_stored_with_a_row_for_each_strength_and_replaced_by_the_next(
    tmp_path: Path,
) -> None:
    project, database = textured_project(tmp_path)
    add_images(project, database, "test", 6)
    model = add_trained_model(project, database, make_segmenter(project, overconfident=4.0))
    calls: list[tuple[int, int | None]] = []
    report = stress(
        project, database, images=3, progress=lambda title, done, total: calls.append((done, total))
    )
    assert (report.model, report.split, report.images) == ("r01", "test", 3)
    assert calls[-1] == (3 * (len(STRESSES) + 1),) * 2
    stored = ask(database, assessment_of, model_id=model.id, kind="stress")
    assert stored is not None
    document = stored.document
    rows = {(row["kind"], row["strength"], row["metric"]): row["value"] for row in document["rows"]}
    assert {(one.kind, one.strength) for one in (*STRESSES, *BASES.values())} == {key[:2] for key in rows}
    assert rows["blur", 0.0, "accuracy"] == rows["magnify", 1.0, "accuracy"]
    assert rows["fgsm", 4.0, "accuracy"] < rows["fgsm", 0.0, "accuracy"]
    assert ("noise", 1.0, "accuracy") not in rows
    assert rows["noise", 1.0, "energy"] != rows["noise", 0.0, "energy"]
    assert {row["kind"] for row in document["verdicts"]} == set(BASES)
    text = "\n".join(report.lines())
    assert "FAILED: Confidence does not fall with adversarial steps" in text or "only" in text
    assert "trained before there was one" in text
    again = stress(project, database, images=3)
    first, second = (
        [estimate.value for metrics in found.means.values() for estimate in metrics.values()]
        for found in (report, again)
    )
    assert first == second


def test_the_guard_of_the_input_range_catches_magnified_images(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path)
    add_images(project, database, "test", 2, masks=False)
    network = make_segmenter(project)
    model = add_trained_model(project, database, network)
    with pytest.raises(UserError, match="test or calibration split has a mask"):
        stress(project, database)
    add_images(project, database, "calibration", 3)
    folder = project.path(model.checkpoint_uri)
    card = read_card(folder)
    seen = InputRange(images=3, lowest=[[-2.0] * 3] * 4, highest=[[2.0] * 3] * 4)
    save_model(folder, network, card.model_copy(update={"input_range": seen}))
    report = stress(project, database, images=2)
    said = next(verdict for verdict in report.verdicts if verdict.kind == "magnify")
    assert report.split == "calibration"
    assert "the input-range guard catches it (2 of 2 images)" in said.text


def test_one_block_gives_no_interval() -> None:
    alone = Sample(np.zeros(4, dtype=np.int64), EvaluationConfig(resamples=100, confidence=0.95), seed=0)
    found = alone.mean(np.arange(4.0))
    assert found.value == 1.5
    assert math.isnan(found.low)

"""What a stress test says, and that it can say no."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from db.queries.evaluations import assessment_of
from pipeline.config import EvaluationConfig
from pipeline.data.input_range import InputRange
from pipeline.errors import UserError
from pipeline.evaluation.stress_verdicts import BASES, METRICS, STRESSES, Condition, Sample, Verdict, verdicts
from pipeline.format import evidence
from pipeline.model.checkpoints import read_card, save_model
from pipeline.steps.stress import stress
from pipeline.studies.stress import ClassMeans
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
    usual = {
        "balanced_accuracy": 0.9,
        "confidence": 0.95,
        "entropy": 0.1,
        "mutual_information": 0.02,
        "energy": -8.0,
    }
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
    said = verdict(results({worst: {"balanced_accuracy": -0.3, "confidence": 0.005}}))
    assert (said.kind, said.ok) == (kind, False)
    assert "does not fall" in said.text
    said = verdict(results({worst: {"balanced_accuracy": -0.3, "confidence": -0.25}}))
    assert said.ok
    assert "0.90 to 0.60" in said.text


def test_confidence_that_falls_far_less_than_accuracy_fails() -> None:
    said = verdict(results({condition("blur"): {"balanced_accuracy": -0.4, "confidence": -0.1}}))
    assert not said.ok
    assert "by only 26% of what accuracy loses" in said.text


def test_confidence_may_stay_where_accuracy_stays() -> None:
    said = verdict(results({condition("blur"): {"balanced_accuracy": 0.0, "confidence": 0.0}}))
    assert said.ok is None
    assert "Nothing moves with blur" in said.text


def test_a_fall_that_is_certain_but_tiny_is_no_failure() -> None:
    said = verdict(results({condition("blur"): {"balanced_accuracy": -0.005}}, scatter=0.001))
    assert re.search(r"balanced accuracy 0.\d+ to 0.\d+, -0.00[456] \[-0.00\d, -0.00\d\]", said.text)
    assert said.ok is None
    said = verdict(results({condition("magnify"): {"confidence": 0.005}}, scatter=0.001))
    assert said.ok


def test_what_the_images_do_not_tell_is_left_open() -> None:
    said = verdict(results({condition("blur"): {"balanced_accuracy": -0.1}}, scatter=0.3))
    assert said.ok is None
    assert "do not tell" in said.text
    alone = Sample(np.zeros(IMAGES, dtype=np.int64), EvaluationConfig(resamples=100, confidence=0.95), seed=0)
    changes = {condition("blur"): {"balanced_accuracy": -0.3}, condition("noise"): {"energy": -9.0}}
    assert {said.ok for said in verdicts(results(changes), alone, guarded="it looked")} == {None}


def test_a_confidence_that_rises_as_accuracy_does_is_no_failure() -> None:
    moved = {"confidence": 0.1, "balanced_accuracy": 0.15}
    assert verdict(results({condition("magnify"): moved})).ok is not False


def test_a_thin_class_weighs_as_much_as_the_background() -> None:
    label = torch.zeros(1, 10, 10, dtype=torch.uint8)
    label[0, 0] = 1
    label[0, 9] = 255
    right = torch.ones(1, 10, 10)
    right[0, 0] = 0
    means = ClassMeans()
    for rows in (slice(0, 3), slice(3, 10)):
        means.add(right[0, rows], label[0, rows])
    assert means.mean() == 0.5
    nothing = ClassMeans()
    nothing.add(right[0], torch.full_like(label[0], 255))
    assert math.isnan(nothing.mean())


@pytest.mark.parametrize(("rise", "ok"), [(0.04, False), (-0.2, True)])
def test_confidence_that_rises_with_magnified_inputs_fails(rise: float, ok: bool) -> None:
    said = verdict(results({condition("magnify"): {"confidence": rise, "balanced_accuracy": -0.3}}))
    assert said.ok is ok
    assert ("no temperature corrects that" in said.text) is not ok
    assert "the guard looked" in said.text


@pytest.mark.parametrize(("energy", "ok"), [(4.0, True), (0.0, False)])
def test_noise_must_rank_in_the_top_of_the_energy_score(energy: float, ok: bool) -> None:
    said = verdict(
        results({condition("noise"): {"energy": energy, "balanced_accuracy": np.nan}}, scatter=0.3)
    )
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
        project, database, images=3, progress=lambda title, done, total, *_: calls.append((done, total))
    )
    assert (report.model, report.split, report.images) == ("r01", "test", 3)
    assert next(report.lines()).startswith(f"r01 on {evidence(3, report.units)} of the test split")
    assert calls[-1] == (3 * (len(STRESSES) + 1),) * 2
    stored = ask(database, assessment_of, model_id=model.id, kind="stress")
    assert stored is not None
    document = stored.document
    assert (document["images"], document["blocks"]) == (3, report.units)
    rows = {(row["kind"], row["strength"], row["metric"]): row["value"] for row in document["rows"]}
    assert {(one.kind, one.strength) for one in (*STRESSES, *BASES.values())} == {key[:2] for key in rows}
    assert rows["blur", 0.0, "balanced_accuracy"] == rows["magnify", 1.0, "balanced_accuracy"]
    assert rows["fgsm", 4.0, "balanced_accuracy"] < rows["fgsm", 0.0, "balanced_accuracy"]
    assert ("noise", 1.0, "balanced_accuracy") not in rows
    assert rows["noise", 1.0, "energy"] != rows["noise", 0.0, "energy"]
    assert {row["kind"] for row in document["verdicts"]} == set(BASES)
    text = "\n".join(report.lines())
    outcomes = [line.split(": ")[0] for line in text.splitlines()[-len(document["verdicts"]) :]]
    assert set(outcomes) <= {"passed", "FAILED", "open"}
    assert all("balanced accuracy" in row["text"] for row in document["verdicts"] if row["kind"] == "blur")
    assert max(len(line) for line in text.splitlines() if line.startswith("  ")) <= 80
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
    with pytest.raises(UserError, match="No image with a mask is in the test or calibration split"):
        stress(project, database)
    add_images(project, database, "calibration", 3)
    folder = project.path(model.checkpoint_uri)
    card = read_card(folder)
    seen = InputRange(images=3, lowest=[[-2.0] * 3] * 4, highest=[[2.0] * 3] * 4)
    save_model(folder, network, card.model_copy(update={"input_range": seen}))
    report = stress(project, database, images=2)
    said = next(verdict for verdict in report.verdicts if verdict.kind == "magnify")
    assert report.split == "calibration"
    assert "the check of the input range catches it (2 of 2 images)" in said.text


def test_one_block_gives_no_interval() -> None:
    alone = Sample(np.zeros(4, dtype=np.int64), EvaluationConfig(resamples=100, confidence=0.95), seed=0)
    found = alone.mean(np.arange(4.0))
    assert found.value == 1.5
    assert math.isnan(found.low)

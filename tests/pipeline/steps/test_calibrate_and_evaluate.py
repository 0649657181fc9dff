"""Calibrating and evaluating a round's model, against direct computation on the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, roc_auc_score

from db.engine import Database
from db.queries import evaluations, rounds
from db.queries import failures as failure_queries
from db.tables import Calibration, Evaluation, Image, Metric, Model, Round
from pipeline.calibration.calibrators import (
    KINDS,
    Calibrators,
    ClasswiseTemperature,
    Identity,
    Temperature,
    calibrator_from,
)
from pipeline.calibration.fit import log_probability
from pipeline.data.project import Project
from pipeline.errors import NotYourTurn, UserError
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.served_model import stored_calibrators
from pipeline.summaries.models import model_history
from pipeline.summaries.rounds import round_history
from pipeline.uncertainty.drawn_pixels import draw_pixels, pixels_of
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.samplers import Normalisation
from tests.factories import Workspace, ask, change, configured, count_rows, round_state
from tests.recorded_progress import RecordedProgress
from tests.textures import add_images, add_trained_model, make_segmenter, read_pair, textured_project


@pytest.fixture
def small(tmp_path: Path) -> Workspace:
    return textured_project(tmp_path, pixels=500)


def state(database: Database) -> str:
    return round_state(database)[1]


def direct(project: Project, temperature: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability [N, C] and label [N] of every labeled test pixel, by one whole pass an image."""
    segmenter = make_segmenter(project, overconfident=5)
    probabilities, labels = [], []
    for index in range(count):
        image, mask = read_pair(project, f"test_{index}.png")
        with torch.no_grad():
            logits = segmenter.tail(segmenter.trunk(image))
            probability = segmenter.upsample((logits / temperature).softmax(dim=1))[0]
        valid = mask != 255
        probabilities.append(probability[:, valid].T.numpy())
        labels.append(mask[valid])
    return np.concatenate(probabilities).astype(np.float64), np.concatenate(labels)


def direct_ece(probability: np.ndarray, labels: np.ndarray) -> float:
    confidence, correct = probability.max(axis=1), probability.argmax(axis=1) == labels
    index = np.minimum((confidence * 15).astype(int), 14)
    return sum(
        (index == k).mean() * abs(correct[index == k].mean() - confidence[index == k].mean())
        for k in np.unique(index)
    )


def test_a_round_is_calibrated_evaluated_and_its_model_promoted(small: Workspace) -> None:
    add_images(*small, "calibration", 8)
    add_images(*small, "test", 9)
    model = add_trained_model(*small, make_segmenter(small.project, overconfident=5))

    report = calibrate(*small)
    rows = report.rows

    assert [row.sampler for row in rows] == ["none", "mc_dropout"]
    assert state(small.database) == "evaluate"
    for row in rows:
        first = f"{row.sampler}: temperature {row.parameters['temperature']:.2f} from 8"
        assert any(line.startswith(first) for line in report.lines())
        assert row.calibrator == "temperature"
        assert row.images == 8
        assert 2 < row.parameters["temperature"] < 19
        assert row.nll_before is not None
        assert row.nll_after is not None
        assert row.nll_after < row.nll_before - 0.1
    assert rows[0].parameters["temperature"] != rows[1].parameters["temperature"]

    report = evaluate(*small)

    assert report.promoted
    assert state(small.database) == "score"
    assert {(row.split, row.sampler, row.calibrated) for row in report.rows} == {
        (split, sampler, calibrated)
        for split in ("test", "calibration")
        for sampler in ("none", "mc_dropout")
        for calibrated in (False, True)
    }
    temperature = rows[0].parameters["temperature"]
    eces: list[float] = []
    for calibrated, divisor in ((False, 1.0), (True, temperature)):
        probability, labels = direct(small.project, divisor, 9)
        with small.database.session(write=False) as session:
            metrics = evaluations.metrics_of(
                session, model_id=model.id, split="test", sampler="none", calibrated=calibrated
            )
        predicted = probability.argmax(axis=1)
        expected = jaccard_score(labels, predicted, average="macro")
        found = metrics[("miou", -1)]
        assert found.value == pytest.approx(expected, abs=1e-9)
        assert found.low is not None
        assert found.high is not None
        assert found.low < expected < found.high
        ece = metrics[("ece", -1)].value
        assert ece == pytest.approx(direct_ece(probability, labels), abs=1e-6)
        auroc = roc_auc_score(predicted != labels, 1 - probability.max(axis=1))
        assert metrics[("auroc_least_confidence", -1)].value == pytest.approx(auroc, abs=0.02)
        assert ece is not None
        eces.append(ece)
    assert eces[1] < eces[0] / 2


def test_the_fits_and_the_resampling_are_counted_to_their_end(small: Workspace) -> None:
    add_images(*small, "calibration", 8)
    add_images(*small, "test", 9)
    add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    fitting, measuring = RecordedProgress(), RecordedProgress()
    calibrate(*small, progress=fitting)
    evaluate(*small, progress=measuring)
    assert {total for _, total in fitting.calls["fit calibrators"]} == {len(KINDS)}
    assert {total for _, total in measuring.calls["Resampling"]} == {4}  # two samplers, before and after
    assert fitting.unfinished() == measuring.unfinished() == []


def test_mutual_information_is_evaluated_only_where_there_are_samples(small: Workspace) -> None:
    add_images(*small, "test", 3)
    add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    calibrate(*small)
    by_sampler = {row.sampler: row for row in evaluate(*small).rows}
    assert ("auroc_mutual_information", -1) in by_sampler["mc_dropout"].metrics
    assert ("auroc_mutual_information", -1) not in by_sampler["none"].metrics
    assert "mutual_information" in by_sampler["mc_dropout"].curves["risk_coverage"]


def test_running_again_replaces_and_gives_the_same_numbers(small: Workspace) -> None:
    add_images(*small, "calibration", 4)
    add_images(*small, "test", 4)
    add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    first = calibrate(*small)
    again = calibrate(*small)
    assert [row.parameters for row in again.rows] == [row.parameters for row in first.rows]
    report = evaluate(*small)
    repeated = evaluate(*small)
    np.testing.assert_equal([row.metrics for row in repeated.rows], [row.metrics for row in report.rows])
    assert repeated.decision == report.decision
    assert count_rows(small.database, Calibration) == 2
    assert count_rows(small.database, Evaluation) == 8
    metrics = count_rows(small.database, Metric)
    assert metrics == sum(len(row.metrics) for row in report.rows)


def test_without_calibration_masks_scores_stay_scores_and_say_so(small: Workspace) -> None:
    add_images(*small, "calibration", 3, masks=False)
    add_images(*small, "test", 3)
    model = add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    report = calibrate(*small)
    for row in report.rows:
        assert row.calibrator == "identity"
        assert row.nll_after is None
        assert row.warning is not None
        assert "stay uncalibrated" in row.warning
        line = f"{row.sampler}: nothing to fit on; its scores stay softmax scores."
        assert line in report.lines()
    assert sum("stay uncalibrated" in line for line in report.lines()) == 1  # once for all samplers
    assert ask(small.database, stored_calibrators, model.id, sampler="mc_dropout") == Calibrators(
        Identity(), Identity()
    )
    assert state(small.database) == "evaluate"


def test_a_broken_file_is_recorded_and_the_rest_goes_on(small: Workspace) -> None:
    project, database = small
    add_images(project, database, "calibration", 3)
    add_images(project, database, "test", 4)
    add_trained_model(project, database, make_segmenter(project, overconfident=5))
    broken = project.root / "images" / "test_1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (project.root / "masks" / "calibration_0.png").unlink()
    rows = calibrate(project, database).rows
    assert [row.images for row in rows] == [2, 2]
    report = evaluate(project, database)
    assert {row.images for row in report.rows if row.split == "test"} == {3}
    failures = {(row.step, row.subject): row.reason for row in ask(database, failure_queries.list_failures)}
    assert ("calibrate", "masks/calibration_0.png") in failures
    assert ("evaluate", "masks/calibration_0.png") in failures
    assert "images/test_1.png" in failures[("evaluate", "images/test_1.png")]


def test_images_larger_than_a_tile_and_resized_images_are_measured_too(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path, tile=64, input_scale=1.5)
    add_images(project, database, "calibration", 2)
    add_images(project, database, "test", 2)
    add_trained_model(project, database, make_segmenter(project, overconfident=5))
    rows = calibrate(project, database).rows
    assert all(row.pixels > 200 for row in rows)
    report = evaluate(project, database)
    test = next(row for row in report.rows if row.split == "test")
    assert 0 < test.metrics[("miou", -1)].value < 1
    assert any("2 images in 1 independent unit: there are no intervals" in it for it in report.warnings)
    lines = list(report.lines())
    at = lines.index("On the test split (2 images in 1 independent unit):")
    assert lines[0] == "r01: values with 95 % intervals over independent units."
    assert lines[at + 1].split() == ["sampler", "none", "uncalibrated", "calibrated"]
    assert lines[at + 2].split()[:2] == ["mIoU", f"{test.metrics['miou', -1].value:.3f}"]
    tables = [line for line in lines if line.startswith("  ")]
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize("sampler", ["mc_dropout", "tta", "none"])
@pytest.mark.parametrize("size", [(56, 72), (112, 144)])
def test_calibrators_are_fitted_on_the_probabilities_that_are_served(
    tmp_path: Path, sampler: str, size: tuple[int, int]
) -> None:
    """At every labeled pixel, the probability of the fit is that of masks, maps and evaluations; the image
    of 112×144 pixels was halved for the network."""
    project, database = textured_project(tmp_path)
    add_images(project, database, "test", 1)
    image, mask = read_pair(project, "test_0.png")
    image, mask = image[..., :56, :72], mask[:56, :72]
    label = torch.from_numpy(np.kron(mask, np.ones((size[0] // 56,) * 2, dtype=np.uint8)))
    calibrators = Calibrators(Temperature(1.7), ClasswiseTemperature((0.6, 1.5, 2.5)))
    predictor = Predictor(
        make_segmenter(project, overconfident=5),
        scoring=project.config.scoring.model_copy(update={"sampler": sampler, "resolution": "logits"}),
        calibrators=calibrators,
        device=torch.device("cpu"),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    drawn = draw_pixels(predictor, image, label, pixels=100_000, generator=np.random.default_rng(0))
    generator = np.random.default_rng(0)
    generator.choice(1, p=[1.0])  # the tile
    order = generator.permutation(np.flatnonzero(label != 255))
    assert drawn.labels.tolist() == label.flatten()[torch.from_numpy(order)].tolist()
    prediction = predictor.predict(image)
    terms = {"mc_dropout": 4, "tta": 6, "none": 1}[sampler]
    for sampled, calibrator, maps in (
        (False, calibrators.deterministic, prediction.deterministic_probability),
        (True, calibrators.sampled, prediction.probability),
    ):
        if sampled and sampler == "none":
            continue
        pixels = pixels_of([drawn], sampled=sampled)
        assert len(pixels.logits) == 4 * (terms if sampled else 1)
        served = prediction.at(maps, size)[0].flatten(1)[:, torch.from_numpy(order)]
        difference = (log_probability(calibrator, pixels).exp() - served).abs()
        assert difference.median() < 1e-6
        assert difference.max() < (1e-5 if size == (56, 72) else 0.07)


def test_weights_stand_for_the_pixels_that_were_not_drawn(small: Workspace) -> None:
    add_images(*small, "test", 1)
    image, mask = read_pair(small.project, "test_0.png")
    predictor = Predictor(
        make_segmenter(small.project),
        scoring=small.project.config.scoring,
        calibrators=Calibrators(),
        device=torch.device("cpu"),
    )
    weights = np.where(np.arange(mask.shape[1]) < 48, 2.0, 6.0).astype(np.float32)
    drawn, every = (
        draw_pixels(
            predictor,
            image,
            torch.from_numpy(mask.copy()),
            pixels=pixels,
            generator=np.random.default_rng(0),
            weights=np.broadcast_to(weights, mask.shape),
        )
        for pixels in (50, 10_000)
    )
    assert set(every.weights.tolist()) == {2.0, 6.0}
    factor = len(every.weights) / 50
    assert torch.allclose(drawn.weights.unique(), torch.tensor([2.0 * factor, 6.0 * factor]))


def test_the_report_compares_all_calibrators_and_says_which_one_is_stored(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path)
    project = configured(project, calibration={"calibrator": "auto"}, scoring={"sampler": "tta"})
    add_images(project, database, "calibration", 16)
    model = add_trained_model(project, database, make_segmenter(project, overconfident=5))
    rows = {row.sampler: row for row in calibrate(project, database).rows}
    assert list(rows) == ["none", "mc_dropout", "tta"]
    for row in rows.values():
        report = row.report
        assert report is not None
        assert (report["source"], report["images"], report["cross_fitted"]) == ("calibration", 16, True)
        items = {item["name"]: item for item in report["calibrators"]}
        assert set(items) == set(KINDS)
        assert row.calibrator == report["chosen"] == report["auto"]
        assert row.parameters == items[row.calibrator]["parameters"]
        assert row.nll_after == items[row.calibrator]["nll"]["value"]
        assert row.nll_before == items["identity"]["nll"]["value"]
        kept = ("identity", "temperature", "classwise_temperature", "selective")
        best = min(items[name]["nll"]["value"] for name in kept)
        assert best <= row.nll_after < items["identity"]["nll"]["value"]
        assert items["temperature"]["ece"]["value"] < items["identity"]["ece"]["low"]
        calibrator = calibrator_from(row.calibrator, row.parameters)
        assert calibrator.name == row.calibrator
        if row.sampler == "none":
            assert items["identity"]["labels_changed"] == 0
            assert max(items[name]["labels_changed"] for name in kept) < 0.1  # of pixels between cells
        stored = ask(database, evaluations.model_calibrations, model.id)[row.sampler]
        assert stored.passed == (items[row.calibrator]["ece"]["high"] < 0.05) == (report["reason"] is None)
    evaluated = {row.sampler for row in evaluate(project, database).rows}
    assert evaluated == {"none", "mc_dropout", "tta"}


def test_where_the_test_split_contradicts_the_word_probability_is_withdrawn_everywhere(
    small: Workspace,
) -> None:
    """A calibrator that passed on the calibration images is made far too sure for the test images."""
    project, database = configured(small.project, data={"independent": True}), small.database
    add_images(project, database, "calibration", 6)
    add_images(project, database, "test", 12)
    model = add_trained_model(project, database, make_segmenter(project))
    calibrate(project, database)
    fitted = ask(database, evaluations.model_calibrations, model.id)["mc_dropout"]
    report = {**(fitted.report or {}), "reason": None}

    def evaluated(temperature: float) -> str:
        values = {"parameters": {"temperature": temperature}, "passed": True, "report": report}
        change(database, Calibration, **values)
        return "\n".join(evaluate(project, database).lines())

    text = evaluated(0.1)
    reason = "On the test split, calibration changes the NLL by +"
    assert f"mc_dropout: its confidence is a softmax score, not a probability. {reason}" in text
    assert {row.passed for row in ask(database, evaluations.model_calibrations, model.id).values()} == {False}
    pair = ask(database, stored_calibrators, model.id, sampler="mc_dropout")
    assert (pair.class_map, pair.confidence.reason) == ("softmax", ask_reason(database, model))
    for rows in (
        ask(database, round_history, sampler="mc_dropout", class_names=project.config.data.class_names),
        ask(database, model_history, sampler="mc_dropout", class_names=project.config.data.class_names),
    ):
        assert rows[0].confidence == "softmax score"
        assert rows[0].confidence_reason is not None
        assert rows[0].confidence_reason.startswith(reason)

    assert "not a probability" not in evaluated(fitted.parameters["temperature"])
    pair = ask(database, stored_calibrators, model.id, sampler="mc_dropout")
    assert (pair.class_map, pair.confidence.reason) == ("probability", None)


def test_a_model_that_is_measured_again_on_a_grown_test_split_may_lose_the_word_probability(
    small: Workspace,
) -> None:
    project, database = configured(small.project, data={"independent": True}), small.database
    later = Image.uri.like("images/test%") & (Image.position >= 6)
    add_images(project, database, "calibration", 6)
    add_images(project, database, "test", 12)
    change(database, Image, later, split="guard", split_version=None)
    first = add_trained_model(project, database, make_segmenter(project))
    calibrate(project, database)
    evaluate(project, database)
    fitted = ask(database, evaluations.model_calibrations, first.id)["mc_dropout"]
    report = {**(fitted.report or {}), "reason": None}
    change(database, Calibration, parameters={"temperature": 0.1}, passed=True, report=report)
    change(database, Image, later, split="test", split_version=2)
    add_trained_model(project, database, make_segmenter(project), number=2)
    calibrate(project, database)
    text = "\n".join(evaluate(project, database).lines())
    assert "r01, mc_dropout: its confidence is a softmax score, not a probability. On the test split" in text
    stored = ask(database, evaluations.model_calibrations, first.id)
    assert {row.sampler: row.passed for row in stored.values()} == {"none": False, "mc_dropout": False}


def ask_reason(database: Database, model: Model) -> str:
    """Why the sampled softmax of a model is no probability, as it is stored."""
    report = ask(database, evaluations.model_calibrations, model.id)["mc_dropout"].report
    assert report is not None
    return report["contradiction"]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "temperature"])
def test_the_configured_calibrator_is_stored_and_applied(tmp_path: Path, name: str) -> None:
    project, database = textured_project(tmp_path)
    project = configured(project, calibration={"calibrator": name})
    add_images(project, database, "calibration", 4)
    model = add_trained_model(project, database, make_segmenter(project, overconfident=5))
    for row in calibrate(project, database).rows:
        assert row.report is not None
        assert (row.calibrator, row.report["chosen"]) == (name, name)
    calibrators = ask(database, stored_calibrators, model.id, sampler="mc_dropout")
    assert calibrators.deterministic.name == calibrators.sampled.name == name
    calibration = [row for row in evaluate(project, database).rows if row.sampler == "mc_dropout"]
    before, after = (row.metrics[("nll", -1)].value for row in calibration)
    assert after == pytest.approx(before) if name == "identity" else after < before - 0.05


def test_steps_wait_for_their_turn_and_for_a_model(small: Workspace) -> None:
    with pytest.raises(NotYourTurn, match="segcurate ingest"):
        calibrate(*small)
    ask(small.database, rounds.open_round, number=1, state="train")
    with pytest.raises(NotYourTurn, match="segcurate train"):
        calibrate(*small)
    with pytest.raises(NotYourTurn, match="segcurate train"):
        evaluate(*small)
    change(small.database, Round, state="calibrate")
    with pytest.raises(UserError, match="no trained model"):
        calibrate(*small)


def test_stored_calibrators_come_back_for_their_own_sampler(small: Workspace) -> None:
    model = add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    with small.database.session() as session:
        for sampler, temperature in (("none", 2.0), ("mc_dropout", 1.5)):
            evaluations.put_calibration(
                session,
                model_id=model.id,
                sampler=sampler,
                calibrator="temperature",
                parameters={"temperature": temperature, "at_bound": False},
                nll_before=1.0,
                nll_after=0.9,
                images=1,
                pixels=1,
                warning=None,
            )
    calibrators = ask(small.database, stored_calibrators, model.id, sampler="mc_dropout")
    assert calibrators == Calibrators(deterministic=Temperature(2.0), sampled=Temperature(1.5))

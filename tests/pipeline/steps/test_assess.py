"""The step `assess`: what it asks, of whom, and what it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from sklearn.metrics import roc_auc_score

from db.engine import Database
from db.queries.evaluations import assessment_of, put_assessment
from db.tables import Assessment, Model
from pipeline.calibration.calibrators import Calibrators
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.model.checkpoints import load_model
from pipeline.steps.assess import AssessReport, assess
from pipeline.steps.held_out import held_out_images
from pipeline.studies.held_out import HeldOutImages
from pipeline.uncertainty.served_model import open_model
from tests.factories import Workspace, ask, count_rows, fetch_one
from tests.recorded_progress import RecordedProgress
from tests.textures import add_images, add_trained_model, make_segmenter, read_pair, textured_project

IMAGES = 8
Judged = tuple[Project, Database, AssessReport]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A project whose model was assessed with two samplers."""
    made = make(tmp_path_factory.mktemp("judged"))
    return made.project, made.database, assess(*made, samplers=["none", "mc_dropout"])


def make(root: Path, *, split: str = "test", masks: bool = True) -> Workspace:
    made = textured_project(root)
    add_images(*made, split, IMAGES, masks=masks)
    if split == "test":
        add_images(*made, "calibration", 4)
    add_trained_model(*made, make_segmenter(made.project, overconfident=2.0))
    return made


def rows(document: dict[str, Any], section: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in document[section] if all(row[key] == value for key, value in wanted.items())]


def test_the_auroc_of_entropy_is_scikit_learns_on_the_networks_own_output(
    judged: Judged,
) -> None:
    project, database, report = judged
    model = fetch_one(database, Model)
    segmenter, _ = load_model(
        project.path(model.checkpoint_uri),
        device=torch.device("cpu"),
        class_names=["ground", "water", "tree"],
    )
    wrong, entropy, labels = [], [], []
    for index in range(IMAGES):
        image, mask = read_pair(project, f"test_{index}.png")
        with torch.inference_mode():
            p_low = segmenter.tail(segmenter.trunk(segmenter.pad(image))).softmax(dim=1)
            entropy_low = torch.special.entr(p_low).sum(dim=1, keepdim=True) / np.log(3)
            p, h = (
                segmenter.upsample(maps)[0, :, : mask.shape[0], : mask.shape[1]].numpy()
                for maps in (p_low, entropy_low)
            )
        kept = mask != 255
        wrong.append((p.argmax(axis=0) != mask)[kept])
        entropy.append(h[0][kept])
        labels.append(mask[kept])
    mistakes, doubts, truth = (np.concatenate(column) for column in (wrong, entropy, labels))
    for part, kept in {
        "all": np.ones(len(truth), dtype=bool),
        "class:ground": truth == 0,
        "class:water": truth == 1,
    }.items():
        (found,) = rows(
            report.document, "detection", sampler="none", measure="entropy", part=part, metric="auroc"
        )
        assert found["value"] == pytest.approx(roc_auc_score(mistakes[kept], doubts[kept]), abs=2e-3)
        assert found["low"] < found["value"] < found["high"]


def test_the_document_is_stored_whole(judged: Judged) -> None:
    _, database, report = judged
    stored = ask(database, assessment_of, model_id=1, kind="quality")
    assert stored is not None
    assert stored.document == report.document
    document = report.document
    assert (document["split"], document["images"], document["blocks"]) == ("test", IMAGES, 4)
    assert {row["metric"] for row in document["detection"]} == {
        "auroc", "aupr", "fpr95", "aurc", "e_aurc", "augrc", "pavpu",
    }  # fmt: skip
    assert {row["part"] for row in document["detection"]} == {
        "all", "boundary", "interior", "class:ground", "class:water", "class:tree",
    }  # fmt: skip
    assert {row["kind"] for row in document["regions"]} == {"grid", "superpixel", "segment"}
    assert {(row["sampler"], row["calibrated"]) for row in document["reliability"]} == {
        (sampler, calibrated) for sampler in ("none", "mc_dropout") for calibrated in (False, True)
    }
    assert [row["sampler"] for row in document["frequency"]] == ["none", "mc_dropout"]
    assert {row["source"] for row in document["novelty"]} == {"shuffled_patches", "noise"}


def test_each_part_of_an_assessment_is_counted_to_its_end(tmp_path: Path) -> None:
    progress = RecordedProgress()
    report = assess(*make(tmp_path), samplers=["none", "mc_dropout"], progress=progress)
    assert list(progress.calls) == ["choose bins", "Grouping predictions", "Assessing images", "Resampling"]
    assert progress.unfinished() == []
    detected = {(row["sampler"], row["measure"]) for row in report.document["detection"]}
    kinds = {(row["sampler"], row["kind"]) for row in report.document["regions"]}
    parts = len(detected) + len(kinds) + 2 * 2  # the reliability before and after calibration
    assert progress.calls["Resampling"] == [(done, parts) for done in range(parts + 1)]


def test_only_samples_give_mutual_information_and_the_gate_asks_it(
    judged: Judged,
) -> None:
    document = judged[2].document
    found = rows(document, "detection", measure="mutual_information")
    assert {row["sampler"] for row in found} == {"mc_dropout"}
    gate = document["gate"]
    assert (gate["measure"], gate["sampler"], gate["threshold"]) == ("mutual_information", "mc_dropout", 0.6)
    worst = min(
        rows(document, "novelty", measure="mutual_information", sampler="mc_dropout"),
        key=lambda row: row["low"],
    )
    assert gate["value"] == worst["value"]
    assert gate["passed"] == (worst["low"] >= 0.6)


def test_measures_of_logits_are_judged_by_the_deterministic_prediction_with_every_sampler(
    judged: Judged,
) -> None:
    document = judged[2].document
    for measure in ("energy", "max_logit", "max_logit_norm"):
        plain, sampled = (
            {(row["kind"],): row["value"] for row in rows(document, "regions", measure=measure, sampler=name)}
            for name in ("none", "mc_dropout")
        )
        assert sampled[("grid",)] == pytest.approx(plain[("grid",)], abs=1e-6)
    plain, sampled = (
        {row["kind"]: row["value"] for row in rows(document, "regions", measure="margin", sampler=name)}
        for name in ("none", "mc_dropout")
    )
    assert sampled["grid"] != plain["grid"]


def test_the_report_says_it_in_words(judged: Judged) -> None:
    text = "\n".join(judged[2].lines())
    assert "r01 on 8 images in 4 independent units of the test split" in text
    assert "mutual_information" in text
    assert "Selection by mutual information: " in text
    assert "mc_dropout: its confidence is a softmax score, not a probability. Its calibrator" in text
    assert "the intervals are rough" in text


def test_without_samples_the_numbers_of_none_are_the_same_and_there_is_no_gate(
    tmp_path: Path, judged: Judged
) -> None:
    project, database = make(tmp_path)
    alone = assess(project, database, samplers=["none"]).document
    beside = judged[2].document
    for section in ("detection", "regions", "reliability", "novelty"):
        assert alone[section] == rows(beside, section, sampler="none")
    assert alone["gate"] is None


def test_assessed_again_it_replaces_what_it_wrote_and_held_out_classes_are_taken_over(tmp_path: Path) -> None:
    project, database = make(tmp_path)
    row = {"sampler": "mc_dropout", "measure": "mutual_information", "metric": "auroc"}
    held_out = {"rows": [row | {"value": 0.7, "low": 0.65, "high": 0.75}]}
    assess(project, database, samplers=["none"], most_images=1)
    ask(database, put_assessment, model_id=1, kind="novelty", document={"held_out_classes": held_out})
    found = assess(project, database, samplers=["mc_dropout"], most_images=3).document
    assert found["images"] == 3
    assert found["gate"]["source"] == "held_out_classes"
    assert found["gate"]["passed"]
    assert count_rows(database, Assessment, Assessment.kind == "quality") == 1


def test_masks_that_cannot_be_read_are_named_and_a_block_without_any_other_does_not_count(
    tmp_path: Path,
) -> None:
    project, database = make(tmp_path)
    (project.root / "masks" / "test_0.png").write_bytes(b"no image")
    PillowImage.new("L", (2, 2)).save(project.root / "masks" / "test_1.png")
    report = assess(project, database, samplers=["none"])
    assert (report.document["images"], report.document["blocks"]) == (IMAGES - 2, 3)
    assert {subject for subject, _ in report.failed} == {"masks/test_0.png", "masks/test_1.png"}
    assert any(line.startswith("not used: masks/test_0.png") for line in report.lines())


def test_bins_are_chosen_on_other_images_where_those_of_the_sample_cannot_be_read(tmp_path: Path) -> None:
    project, database = make(tmp_path)
    model = fetch_one(database, Model)
    served = open_model(project, model.checkpoint_uri, calibrators=Calibrators(), sampler="none")
    with database.session(write=False) as session:
        images = HeldOutImages(project, held_out_images(session, project, "test"))
    ids = list(images.by_id)
    assert {name for batch in images.sample(served, 2) for name in batch.ids} == {ids[0], ids[-1]}
    for index in (0, IMAGES - 1):
        (project.root / "masks" / f"test_{index}.png").write_bytes(b"no image")
    (batch,) = images.sample(served, 2)
    assert set(batch.ids) <= set(ids[1:-1])
    assert images.failed == []


def test_the_calibration_split_stands_in_for_a_test_split_without_masks(tmp_path: Path) -> None:
    project, database = make(tmp_path, split="calibration")
    report = assess(project, database, samplers=["none"], most_images=2)
    assert report.document["split"] == "calibration"
    assert report.document["frequency"] == []
    assert any("optimistic" in warning for warning in report.warnings)


def test_without_any_mask_it_says_what_to_do(tmp_path: Path) -> None:
    project, database = make(tmp_path, split="calibration", masks=False)
    with pytest.raises(UserError, match=r"No image with a mask .*ingest"):
        assess(project, database)


def test_every_sampler_that_the_model_offers_is_asked(tmp_path: Path) -> None:
    scoring = {"ensemble": [".segcurate/models/r02"], "views": {"scales": [], "gamma": []}}
    made = textured_project(tmp_path)
    project, database = made.configured(model={"heads": 2}, scoring=scoring), made.database
    add_images(project, database, "test", 2)
    for number in (2, 1):
        add_trained_model(project, database, make_segmenter(project, overconfident=number), number=number)
    found = assess(project, database, model="r01").document
    samplers = {"none", "mc_dropout", "tta", "head_ensemble", "ensemble"}
    for section in ("detection", "regions", "reliability", "novelty"):
        assert {row["sampler"] for row in found[section]} == samplers
    variation = rows(found, "detection", measure="variation_ratio", part="all", metric="augrc")
    assert {row["sampler"] for row in variation} == samplers - {"none"}


def test_a_sampler_that_the_model_does_not_offer_is_refused(tmp_path: Path) -> None:
    project, database = make(tmp_path)
    with pytest.raises(UserError, match=r"does not offer the sampler `head_ensemble`.*model\.heads"):
        assess(project, database, samplers=["head_ensemble"])

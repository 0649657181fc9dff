"""Pictures are drawn from plain numbers; what they show is read back from the figure."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import IGNORE
from pipeline.errors import UserError
from pipeline.evaluation.estimate import Estimate
from pipeline.report.curves import RiskCurve, draw_learning_curve, draw_risk_coverage
from pipeline.report.figures import line_color, write_figure
from pipeline.report.gallery import MISSING_RANKS, GalleryRow, crop_around, draw_gallery, painted
from pipeline.report.reliability import Reliability, draw_reliability
from pipeline.summaries.classes import ClassFigures
from pipeline.summaries.rounds import RoundSummary
from tests.pipeline.report import documents

NAMES = ["background", "grey matter"]
COLORS = np.array([[40, 40, 40], [250, 240, 214]], dtype=np.uint8)
NOTHING = Estimate(math.nan, math.nan, math.nan)


def classes(*iou: Estimate) -> tuple[ClassFigures, ...]:
    return documents.classes(*iou, names=NAMES)


def point(number: int, value: float, *, promoted: bool = True) -> RoundSummary:
    around = Estimate(value, value - 0.05, value + 0.05)
    made = documents.point(number, value, promoted=promoted)
    return replace(made, labeled_regions=10 * number, mean_iou=around, classes=classes(around, NOTHING))


def reliability(ece: float) -> Reliability:
    document = {
        "edges": [0.0, 0.5, 1.0],
        "pixels": [0, 100],
        "confidence": [None, 0.9],
        "accuracy": [None, 0.6],
        "accuracy_low": [None, 0.5],
        "accuracy_high": [None, 0.7],
    }
    return Reliability.from_document(document, ece=Estimate(ece, ece, ece))


def gallery_row(*, labeled: bool = True, samples: bool = True) -> GalleryRow:
    y, x = np.mgrid[:40, :60].astype(np.float32)
    label = np.full((40, 60), IGNORE, dtype=np.uint8)
    label[8:24, 16:32] = 1
    return documents.shown_row(
        image=np.repeat((4 * x).astype(np.uint8)[..., None], 3, axis=2),
        box=(16, 8, 16, 16),
        prediction=(x > 24).astype(np.uint8),
        entropy=x / 60,
        mutual_information=y / 400 if samples else None,
        label=label if labeled else None,
        heading="1. slice.png",
        reason="entropy 0.83, top 0.4 % of 17 616 regions",
    )


def test_the_learning_curve_shows_each_round_and_its_interval() -> None:
    figure = draw_learning_curve(
        [point(1, 0.6), point(2, 0.7)], class_names=NAMES, colors=COLORS, title="Project"
    )
    left, right = figure.axes
    lines = [np.asarray(line.get_xydata()).tolist() for line in left.lines]
    assert [[0.01, 0.6], [0.02, 0.7]] in lines
    assert any(np.allclose(line, [[0.02, 0.65], [0.02, 0.75]]) for line in lines)
    texts = [text.get_text() for text in left.texts]
    assert "0.700" in texts
    assert "grey matter" not in texts  # its IoU is not defined
    ticks = [label.get_text() for label in right.get_xticklabels()]
    assert ticks == ["1.0 %\nround 1\n10 regions", "2.0 %\nround 2\n20 regions"]


def test_a_refused_model_is_told_apart() -> None:
    figure = draw_learning_curve(
        [point(1, 0.6), point(2, 0.5, promoted=False)], class_names=NAMES, colors=COLORS, title="Project"
    )
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["model refused"]


def test_a_single_round_without_an_interval_is_drawn() -> None:
    alone = replace(
        point(1, 0.4),
        labeled_share=0.0,
        labeled_regions=0,
        mean_iou=Estimate(0.4),
        classes=classes(NOTHING, NOTHING),
        ece_before=NOTHING,
        ece_after=NOTHING,
    )
    figure = draw_learning_curve([alone], class_names=NAMES, colors=COLORS, title="Project")
    assert "0.400" in [text.get_text() for text in figure.axes[0].texts]


def test_no_round_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        draw_learning_curve([], class_names=NAMES, colors=COLORS, title="Project")


def test_the_reliability_diagram_puts_the_gap_on_top_of_the_accuracy() -> None:
    figure = draw_reliability(reliability(0.3), reliability(0.1), title="Round 1")
    diagram = figure.axes[0]
    assert diagram.get_title(loc="left") == "before calibration: ECE 0.300 [0.300, 0.300]"
    bars = [
        (patch.get_x(), patch.get_y(), patch.get_height())  # type: ignore[attr-defined]
        for patch in diagram.patches
    ]
    assert bars == [(0.5, 0.0, 0.6), (0.5, 0.6, pytest.approx(0.3))]
    assert figure.axes[1].get_title(loc="left").startswith("after calibration: ECE 0.100")
    shares = [patch.get_height() for patch in figure.axes[2].patches]  # type: ignore[attr-defined]
    assert shares == [0.0, 1.0]


@pytest.mark.parametrize(("passed", "name"), [(False, "softmax score"), (True, "probability")])
def test_only_a_calibrator_that_passed_makes_a_probability(passed: bool, name: str) -> None:
    figure = draw_reliability(reliability(0.3), reliability(0.1), title="Round 1", passed=passed)
    labels = [axes.get_xlabel() for axes in figure.axes[2:]]
    assert labels == ["softmax score of the prediction", f"{name} of the prediction"]


def test_a_bin_of_a_handful_of_pixels_has_no_bar() -> None:
    document = {
        "edges": [0.0, 0.5, 1.0],
        "pixels": [1, 99_999],
        "confidence": [0.4, 0.9],
        "accuracy": [1.0, 0.9],
        "accuracy_low": [None, 0.85],
        "accuracy_high": [None, 0.95],
    }
    ece = Estimate(0.0, 0.0, 0.0)
    figure = draw_reliability(Reliability.from_document(document, ece=ece), None, title="Round 1")
    starts = {patch.get_x() for patch in figure.axes[0].patches}  # type: ignore[attr-defined]
    assert starts == {0.5}


def test_risk_coverage_names_each_measure() -> None:
    coverage = np.array([0.5, 1.0])
    curve = RiskCurve(risk=np.array([0.02, 0.1]), low=np.array([0.01, 0.08]), high=np.array([0.03, 0.12]))
    figure = draw_risk_coverage({"entropy": curve, "max_logit": curve}, coverage=coverage, title="Round 1")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["entropy", "max logit"]


def test_the_gallery_shows_the_region_in_its_context() -> None:
    figure = draw_gallery([gallery_row()], class_names=NAMES, colors=COLORS, title="Round 1")
    where, image, _, entropy, information, label = figure.axes[:6]
    assert where.images[0].get_array().shape[:2] == (40, 60)  # type: ignore[union-attr]
    assert image.images[0].get_array().shape[:2] == (35, 35)  # type: ignore[union-attr]
    assert entropy.images[0].get_clim() == (0, pytest.approx(40 / 60, rel=0.01))  # of the shown part alone
    assert information.images[0].get_clim() == (0, pytest.approx(34 / 400, rel=0.01))
    shown = label.images[0].get_array()
    assert shown is not None
    assert shown[17, 17].tolist() != shown[0, 0].tolist()


def test_the_note_of_a_gallery_fits_below_its_title() -> None:
    figure = draw_gallery(
        [gallery_row()], class_names=NAMES, colors=COLORS, title="Round 1", note=MISSING_RANKS
    )
    title, note = (text.get_window_extent() for text in figure.texts)
    names = [text for text in figure.axes[0].texts if text.get_text() == "where"]
    assert figure.texts[1].get_text() == MISSING_RANKS
    assert note.y1 < title.y0
    assert note.y0 > names[0].get_window_extent().y1
    assert note.x1 < figure.bbox.x1


def test_a_long_name_does_not_run_into_the_next_column() -> None:
    row = replace(gallery_row(), heading="12. a_very_long_name_of_a_frame_006690.png")
    figure = draw_gallery([row], class_names=NAMES, colors=COLORS, title="Round 1")
    headings = [text.get_text() for text in figure.axes[0].texts]
    assert "12. a_very_…e_006690.png" in headings


def test_what_is_not_known_is_said_in_words() -> None:
    figure = draw_gallery(
        [gallery_row(labeled=False, samples=False)], class_names=NAMES, colors=COLORS, title="Round 1"
    )
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "not labeled yet" in words
    assert "needs samples" in words


def test_a_gallery_of_a_one_pixel_image_is_drawn() -> None:
    one = np.zeros((1, 1), dtype=np.uint8)
    row = documents.shown_row(
        image=np.zeros((1, 1, 3), dtype=np.uint8),
        box=(0, 0, 1, 1),
        prediction=one,
        entropy=one.astype(np.float32),
        mutual_information=None,
        label=None,
        heading="1. tiny.png",
        reason="",
    )
    assert crop_around(row.box, width=1, height=1) == (0, 0, 1, 1)
    assert draw_gallery([row], class_names=NAMES, colors=COLORS, title="Round 1").axes


def test_an_unlabeled_pixel_is_dimmed_and_not_painted() -> None:
    image = np.full((1, 2, 3), 200, dtype=np.uint8)
    mask = np.array([[1, IGNORE]], dtype=np.uint8)
    both = painted(image, mask, COLORS, strength=1.0)
    assert both[0, 0].tolist() == COLORS[1].tolist()
    assert both[0, 1].tolist() == [74, 74, 74]


def test_a_pale_class_is_darkened_until_it_shows_on_white() -> None:
    assert line_color(COLORS[0]) == "#282828"
    assert max(int(line_color(COLORS[1])[index : index + 2], 16) for index in (1, 3, 5)) < 245


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    figure = draw_reliability(reliability(0.3), None, title="Round 1")
    write_figure(tmp_path / "deep" / "picture.png", figure)
    with Image.open(tmp_path / "deep" / "picture.png") as written:
        assert min(written.size) > 500
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_figure(tmp_path / "file" / "picture.png", figure)

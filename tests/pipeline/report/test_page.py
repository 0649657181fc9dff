"""The page is drawn from plain contents; what it says is read back from its HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline.evaluation.confidence import Confidence
from pipeline.report.page import class_colors, render_page
from tests.pipeline.report.documents import empty_contents, full_contents, point, pool_summary
from tests.pipeline.report.stored import COLORS, HOSTILE, MEASURES, quality_document

OUTSIDE = ("http://", "https://", "//cdn", "@import", "url(")


class Outline(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "span", "dd", "p"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def full() -> str:
    return render_page(full_contents())


def test_the_page_needs_no_other_file(full: str) -> None:
    assert not any(word in full for word in OUTSIDE)
    outline = Outline(full)
    sources = [attrs["src"] for tag, attrs in outline.tags if "src" in attrs]
    assert sources
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert outline.count("link") == 0


def test_a_script_in_a_name_is_text(full: str) -> None:
    outline = Outline(full)
    assert outline.count("script") == 1
    assert "<script>alert" not in full
    assert HOSTILE in outline.text
    assert "Noise is taken for <b>sky</b>." in outline.text
    assert "<b>sky" not in full


def test_only_the_page_s_own_script_may_run(full: str) -> None:
    policy = next(str(attrs["content"]) for _, attrs in Outline(full).tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='$", policy)


def test_every_section_has_its_heading_and_its_link(full: str) -> None:
    outline = Outline(full)
    ids = [attrs["id"] for tag, attrs in outline.tags if tag == "section"]
    links = [str(attrs["href"]).removeprefix("#") for tag, attrs in outline.tags if tag == "a"]
    assert ids == [
        "status",
        "queue",
        "gallery",
        "learning",
        "unlabeled",
        "calibration",
        "quality",
        "stress",
        "drift",
        "annotators",
        "lineage",
    ]
    assert set(ids) <= set(links)
    assert outline.count("h1") == 1
    assert outline.count("h2") == len(ids)


def test_numbers_come_with_their_interval(full: str) -> None:
    text = Outline(full).text
    assert "0.740 [0.710, 0.760]" in text  # mIoU of round 3
    assert "MC dropout entropy 0.900 [0.880, 0.920]" in text
    assert "temperature in use, simplest as good as the best 0.400 [0.380, 0.420]" in text


@pytest.mark.parametrize("name", ["learning", "calibration", "quality", "stress"])
def test_intervals_come_with_their_images_and_independent_units(full: str, name: str) -> None:
    start = full.index(f'<section id="{name}"')
    text = Outline(full[start : full.index("</section>", start)]).text
    assert re.search(r"\d images in \d+ independent units", text)


def test_what_is_missing_names_the_command_that_makes_it() -> None:
    text = Outline(render_page(empty_contents())).text
    for command in ("assess", "stress", "novelty", "select", "calibrate", "evaluate"):
        assert f"segcurate {command}" in text
    assert "NaN" not in text
    assert "nan" not in re.findall(r"[a-z]+", text)


def test_no_mark_stands_where_a_number_is_not_defined(full: str) -> None:
    places = re.findall(r'(?:points|cx|cy|d|x|y|width|height)="([^"]*)"', full)
    assert not any("nan" in place or "inf" in place for place in places)


def test_a_single_round_shows_its_classes_side_by_side() -> None:
    contents = full_contents()
    text = Outline(render_page(replace(contents, rounds=contents.rounds[:1]))).text
    assert "Each class Round 1" in text.replace("  ", " ")
    assert "over the rounds" not in text


def test_a_closed_gate_says_what_is_refused(full: str) -> None:
    assert (
        "refuses to rank by mutual information without --force: mutual information (MC dropout)"
        in Outline(full).text
    )
    document = quality_document()
    document["gate"] |= {"low": 0.7, "passed": True}
    opened = Outline(render_page(replace(full_contents(), quality=document))).text
    assert "may rank by mutual information" in opened
    assert "refuses" not in opened


def test_confidence_is_called_a_probability_only_after_a_passing_report(full: str) -> None:
    assert "probability of the prediction" in Outline(full).text
    contents = full_contents()
    confidence = Confidence("softmax score", "On the test split, calibration raised the NLL.")
    refused = [replace(one, confidence=confidence) for one in contents.calibrated]
    text = Outline(render_page(replace(contents, calibrated=refused))).text
    assert "probability of the prediction" not in text
    assert "is a softmax score, not a probability. On the test split, calibration raised the NLL." in text


def test_the_best_number_of_a_column_is_bold_and_lower_is_better_for_risk() -> None:
    document = quality_document()
    for row in document["detection"]:
        if row["metric"] == "aurc":
            row["value"] = 0.001 if (row["sampler"], row["measure"]) == ("tta", "energy") else 0.5
    page = render_page(replace(full_contents(), quality=document))
    table = page[page.index("the best of each column in bold") :]
    rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], flags=re.S)
    strong = [index for index, row in enumerate(rows) if 'strong">0.001' in row]
    assert len(strong) == 1
    tta = next(index for index, row in enumerate(rows) if ">TTA<" in row)
    assert strong[0] == tta + MEASURES.index("energy")


def test_a_class_is_drawn_in_a_colour_that_can_be_read_on_both_pages() -> None:
    rules = class_colors(COLORS)
    assert "--area:#800000" in rules
    darker, lighter = re.search(r"\.c3\{--area:#400080;--light:(#\w+);--dark:(#\w+);", rules).groups()  # type: ignore[union-attr]
    assert sum(int(darker[i : i + 2], 16) for i in (1, 3, 5)) < sum(
        int(lighter[i : i + 2], 16) for i in (1, 3, 5)
    )


def test_a_page_of_eight_regions_a_gallery_stays_small(full: str) -> None:
    assert len(full) < 2_000_000


def test_where_annotators_differ_is_beside_what_the_model_expected(full: str) -> None:
    part = full[full.index('<section id="annotators"') : full.index('<section id="lineage"')]
    text = Outline(part).text
    assert "3 regions of 2 images have two annotators or more" in text
    assert "the model’s expected entropy: 0.610 [0.420, 0.750]." in text
    assert "the model’s mutual information: not known, too few: 3 regions of 2 images." in text
    assert part.count("<circle") == 2
    assert "A point is one of 2 regions with scores." in text
    assert "round-03, 4: 2 annotators 50.0 % 0.315 0.400 0.020" in text
    assert "round-03, 9: 2 annotators 0.0 % 0.000 – –" in text
    assert "75.0 % 2 4096" in text


def test_without_a_second_annotator_there_is_no_such_section() -> None:
    page = render_page(replace(full_contents(), annotators=None))
    assert 'id="annotators"' not in page
    assert "segcurate annotators" not in page


def test_what_the_labels_cost_is_shown_once_it_is_known() -> None:
    contents = full_contents()
    plain = Outline(render_page(contents)).text
    assert "regions mIoU" in plain
    first, *others = contents.rounds
    known = replace(contents, rounds=[replace(first, clicks=1234.0, hours=2.25), *others])
    text = Outline(render_page(known)).text
    assert "regions clicks hours mIoU" in text
    assert "20 1234 2.2" in text
    assert "40 – –" in text


def test_a_perfect_model_has_no_error_to_find() -> None:
    document = quality_document()
    document["detection"] = [row for row in document["detection"] if row["metric"] != "auroc"]
    for row in document["regions"]:
        row |= {"value": None, "low": None, "high": None}
    page = Outline(render_page(replace(full_contents(), quality=document)))
    assert "No pixel of these images is wrong" in page.text
    assert "the regions of these images do not differ in error" in page.text
    assert "score of a region and its error" not in page.text


def test_each_question_has_a_number_of_its_own(full: str) -> None:
    assert sorted(re.findall(r'class="question">([^<]*)<', full)) == [
        "Question 1",
        "Question 2",
        "Question 3",
    ]


def test_a_queue_of_one_class_has_no_chart_of_one_bar() -> None:
    contents = full_contents()
    assert contents.queue is not None
    facts = replace(contents.queue, by_class={"road": 5})
    page = render_page(replace(contents, queue=facts))
    assert "Predicted class" in render_page(contents)
    assert "Predicted class" not in page


def test_an_audit_says_how_good_the_model_is_on_what_is_not_labeled() -> None:
    shown = replace(empty_contents(), audited=[replace(point(1), unlabeled=pool_summary())])
    text = Outline(render_page(shown)).text
    assert "r01 gets 12 % [5 %, 25 %] of the pixels wrong in the 2 340 regions" in text.replace("\xa0", " ")
    assert "10 audited regions in 9 images" in text
    assert "10 of 2 340" in text


def test_the_loss_and_the_learning_rate_of_the_training_are_drawn(full: str) -> None:
    charts = {
        title: full[start : full.index("</figure>", start)]
        for title in ("Training loss", "Learning rate")
        if (start := full.find(f"{title}, r03")) > 0
    }
    assert set(charts) == {"Training loss", "Learning rate"}
    loss, rate = (re.findall(r'<polyline[^>]* points="([^"]*)"', chart) for chart in charts.values())
    assert [len(points.split()) for points in (*loss, *rate)] == [4, 4]
    heights = [float(pair.split(",")[1]) for pair in loss[0].split()]
    assert heights == sorted(heights)  # downwards on the page, as the loss falls
    assert "Training loss" not in render_page(empty_contents())


def test_rounds_on_different_versions_of_a_split_are_told_apart(full: str) -> None:
    assert "Not all rounds were measured on the same images" not in full
    contents = full_contents()
    grown = [*contents.rounds[:2], replace(contents.rounds[2], split_version=2)]
    text = Outline(render_page(replace(contents, rounds=grown))).text
    assert "Not all rounds were measured on the same images" in text
    assert "the newest on 40 images in 12 independent units of the test (version 2) split" in text
    assert "regions split mIoU" in text

"""What a flow run shows: progress, the queue, the round, the folder; and whatever text users bring along."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from sqlalchemy import select, update

from db.queries.queues import put_review
from db.tables import Calibration, Metric, QueueItem, Round, Shard, utc_now
from db.tables import Image as ImageRow
from flows import artifacts, runner
from flows.markdown import code, harmless, picture, plain, prose, table
from flows.round_report import round_report, unlabeled
from pipeline import progress
from pipeline.data.project import load_project
from pipeline.ownership import identity_of, open_database
from pipeline.progress import Progress
from tests.conftest import opened, write_config
from tests.factories import at_once, new_queue
from tests.pipeline.report.documents import point, pool_summary

HOSTILE = (
    "a|b `c` [x](http://evil.example).png",
    "<img src=x onerror=alert(1)>",
    "</td></table><script>alert(1)</script>",
    "# *head* __strong__ ~~gone~~ ![x](y)",
    "\\| back\\slash &lt;b&gt; $x$ {y}",
    "``` fence",
    "two\nlines\r\n- item",
)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def as_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_a_user_is_shown_letter_by_letter_and_becomes_nothing_else(text: str) -> None:
    seen = Seen(MARKDOWN.render(f"It is {plain(text)}!"))
    assert seen.text.strip() == f"It is {as_line(text)}!"
    assert seen.tags == ["p"]
    row = Seen(MARKDOWN.render(table(("name", "kind"), [(text, "x")])))
    assert row.tags.count("td") == 2
    assert as_line(text).strip() in row.text
    assert not {"img", "script", "a", "h1", "em", "strong", "s"} & set(row.tags)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_path_is_shown_as_code_letter_by_letter(text: str) -> None:
    seen = Seen(MARKDOWN.render(f"In {code(text)}."))
    assert seen.text.strip() == f"In {as_line(text)}."
    assert seen.tags == ["p", "code"]


def test_commands_in_a_sentence_stay_commands_and_names_beside_them_stay_names() -> None:
    seen = Seen(MARKDOWN.render(prose("Run `segcurate score`: <b> and `<i>` are classes.")))
    assert seen.tags == ["p", "code"]
    assert seen.text.strip() == "Run segcurate score: <b> and `<i>` are classes."


def test_a_cell_that_may_be_taken_for_markdown_holds_no_tag_and_no_link() -> None:
    for text in HOSTILE:
        tags = set(Seen(MARKDOWN.render(harmless(text))).tags)
        assert not {"img", "script", "a"} & tags
    assert harmless("images/frame_001.png") == "images/frame_001.png"


def test_a_picture_travels_inside_its_page() -> None:
    page = MARKDOWN.render(picture("a ] curve", b"\x89PNG"))
    assert 'src="data:image/png;base64,iVBORw=="' in page
    assert 'alt="a ] curve"' in page


@pytest.fixture(scope="module")
def rude(out_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first night, whose classes, and one queued image, have hostile names."""
    folder = tmp_path_factory.mktemp("rude") / "project"
    shutil.copytree(out_once, folder)
    config = folder / "segcurate.yaml"
    text = re.sub(r"- (ground|red|blue)\n", r"- '<b>\1</b> | `x`'\n", config.read_text(encoding="utf-8"))
    config.write_text(text, encoding="utf-8")
    with opened(folder) as (_, database), database.session() as session:
        image = session.scalars(select(QueueItem.image_id).order_by(QueueItem.rank.desc())).first()
        session.execute(update(ImageRow).where(ImageRow.id == image).values(uri=HOSTILE[0]))
    return folder


@pytest.fixture(scope="module")
def shown(rude: Path, prefect_server: str) -> dict[str, Any]:
    """The artifacts of one flow run, by key without the project's ending."""

    @flow(name="shows everything")
    def everything() -> None:
        with opened(rude) as (project, database):
            with artifacts.scoring_progress(project, database, run_id=7, total=20) as progress:
                for done in range(0, 21, 5):
                    progress("Scoring", done, 20)
                    time.sleep(0.05)
            with (
                suppress(KeyboardInterrupt),
                artifacts.scoring_progress(project, database, run_id=8, total=20) as progress,
            ):
                progress("Scoring", 13, 20)
                raise KeyboardInterrupt
            with artifacts.scoring_progress(project, database, run_id=9, total=0):
                pass
            with (
                artifacts.scoring_progress(project, database, run_id=1, total=6),
                database.session() as session,
            ):
                time.sleep(0.2)
                session.execute(update(Shard).values(finished_at=utc_now(), scored=4, failed=2))
            artifacts.show_queue(project, database)
            artifacts.show_round(project, database)
            artifacts.link_export(project, database, project.path("queues/round-01"))

    state = everything(return_state=True)
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    with get_client(sync_client=True) as client:
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        rows = client.read_artifacts(flow_run_filter=of_run, limit=50)
    with opened(rude) as (project, database):
        ending = f"-squares-{identity_of(project, database).id[:8]}"
    assert all(ending in str(row.key) for row in rows)
    return {str(row.key).replace(ending, ""): row for row in rows}


def test_progress_ends_at_everything_or_at_what_was_reached(shown: dict[str, Any]) -> None:
    assert float(shown["scoring-run-7"].data) == 100
    assert shown["scoring-run-7"].description.startswith("20 of 20 images in ")
    assert "images/s" in shown["scoring-run-7"].description
    assert float(shown["scoring-run-8"].data) == 65
    assert shown["scoring-run-8"].description.startswith("13 of 20 images in ")
    assert shown["scoring-run-9"].description == "Nothing was left to score."


def test_what_other_processes_have_finished_counts(shown: dict[str, Any], rude: Path) -> None:
    with opened(rude) as (_, database), database.session(write=False) as session:
        shards = len(session.scalars(select(Shard.id)).all())
    assert shards >= 1
    assert float(shown["scoring-run-1"].data) == 100
    assert shown["scoring-run-1"].description.startswith("6 of 6 images")


def test_the_queue_is_a_table_of_what_is_asked_for_and_why(shown: dict[str, Any], rude: Path) -> None:
    rows = json.loads(shown["queue"].data)
    with opened(rude) as (_, database), database.session(write=False) as session:
        items = session.scalars(
            select(QueueItem).where(QueueItem.queue_id == 2).order_by(QueueItem.rank)
        ).all()
    assert [row["rank"] for row in rows] == [item.rank for item in items]
    assert [row["slice"] for row in rows] == [item.slice for item in items]
    assert {row["slice"] for row in rows} == {"selected", "audit"}
    first, item = rows[0], items[0]
    assert list(first) == ["rank", "image", "box", "class", "entropy", "slice", "reason"]
    assert first["box"] == f"{item.x}, {item.y} · {item.w} × {item.h}"
    assert first["entropy"] == f"{item.score:.3f}"
    assert str(rude / "queues" / "round-01") in shown["queue"].description


def test_the_round_says_what_its_model_came_to_with_the_intervals(shown: dict[str, Any], rude: Path) -> None:
    page = shown["round"].data
    with opened(rude) as (project, database), database.session(write=False) as session:
        sampler = project.config.scoring.sampler
        wanted = (Metric.name == "miou", Metric.class_index == -1)
        metric = {f"{row.value:.3f}" for row in session.scalars(select(Metric).where(*wanted))}
        passed = session.scalars(select(Calibration.passed).where(Calibration.sampler == sampler)).one()
    seen = Seen(MARKDOWN.render(page))
    value = re.search(r"mIoU(\d\.\d{3}) \[\d\.\d{3}, \d\.\d{3}\]", seen.text.replace("\n", ""))
    assert value is not None
    assert value[1] in metric
    assert ("is a probability." if passed else "is a softmax score: ") in seen.text
    assert "Model r01: promoted ✓" in seen.text
    assert "segcurate import queues/round-01" in seen.text
    assert shown["round"].description.startswith(f"Round 1: r01 promoted, mIoU {value[1]}")


def test_the_round_holds_the_learning_curve_and_nothing_of_what_users_smuggle_in(
    shown: dict[str, Any],
) -> None:
    page = shown["round"].data
    png = re.search(r"data:image/png;base64,([\w+/=]+)\)", page)
    assert png is not None
    with Image.open(io.BytesIO(base64.b64decode(png[1]))) as drawn:
        assert 600 < drawn.width < drawn.height < 1200
        assert len(drawn.convert("L").getcolors() or []) > 20
    seen = Seen(MARKDOWN.render(page))
    assert re.search(r"<b>(ground|red|blue)</b> \| `x`", seen.text)
    assert not {"b", "a", "script"} & set(seen.tags)
    assert seen.tags.count("img") == 1


def test_the_exported_folder_is_a_path_to_copy(shown: dict[str, Any], rude: Path) -> None:
    page = shown["export"].data
    assert f"`{rude / 'queues' / 'round-01'}`" in page
    assert (rude / "queues" / "round-01").as_uri() in page
    assert "`manifest.jsonl`" in page


def test_no_two_projects_share_an_artifact_even_with_one_name_and_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_run: list[str]
) -> None:
    keys: set[str] = set()
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda p, key, d: keys.add(key))
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *_, key, **__: keys.add(key))
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        project = load_project(write_config(folder))
        with closing(open_database(project)) as database:
            with artifacts.scoring_progress(project, database, run_id=1, total=0):
                pass
            artifacts.link_export(project, database, folder)
    assert in_a_run == []
    assert len(keys) == 4
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys)


def test_nothing_is_shown_outside_a_run(rude: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an artifact was written")

    for name in ("create_table_artifact", "create_markdown_artifact", "create_progress_artifact"):
        monkeypatch.setattr(artifacts, name, refuse)
    before = threading.active_count()
    with opened(rude) as (project, database):
        with artifacts.scoring_progress(project, database, run_id=1, total=3) as progress:
            progress("Scoring", 3, 3)
            assert threading.active_count() == before
        artifacts.show_queue(project, database)
        artifacts.show_round(project, database)
        artifacts.link_export(project, database, rude)


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if a flow ran here; what its log would say."""
    said: list[str] = []

    class Log:
        def warning(self, message: str, *values: object) -> None:
            said.append(message % values)

    monkeypatch.setattr(artifacts, "in_a_run", lambda: True)
    monkeypatch.setattr(artifacts, "get_run_logger", Log)
    return said


def test_an_artifact_that_fails_is_a_warning_and_the_work_goes_on(
    rude: Path, monkeypatch: pytest.MonkeyPatch, in_a_run: list[str]
) -> None:
    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the server is away")

    for name in ("create_table_artifact", "create_markdown_artifact", "create_progress_artifact"):
        monkeypatch.setattr(artifacts, name, away)
    with opened(rude) as (project, database):
        artifacts.show_queue(project, database)
        artifacts.show_round(project, database)
        artifacts.link_export(project, database, rude / "not there")
        with artifacts.scoring_progress(project, database, run_id=1, total=3) as progress:
            progress("Scoring", 3, 3)
    assert [line.split(":")[0] for line in in_a_run] == [
        "An artifact was left out, show_queue failed",
        "An artifact was left out, show_round failed",
        "An artifact was left out, link_export failed",
        "Progress of run 1 is not shown",
    ]


def test_a_review_or_a_withdrawn_queue_is_not_shown_as_the_queue_of_the_round(
    out: Path, monkeypatch: pytest.MonkeyPatch, in_a_run: list[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        artifacts, "create_table_artifact", lambda *_, description, **__: shown.append(description)
    )
    with opened(out) as (project, database):
        with database.session() as session:
            item = session.scalars(select(QueueItem).where(QueueItem.queue_id == 2)).first()
            assert item is not None
            kept = {key: getattr(item, key) for key in ("image_id", "region_index", "x", "y", "w", "h")}
            kept |= {"rank": 1, "slice": "selected", "reason": "doubt"}
            put_review(session, run_id=None, strategy="doubt", unit="region", spec={}, items=[kept])
        artifacts.show_queue(project, database)
        page = round_report(project, database)
        with database.session() as session:  # the round is closed, and the queue of the next one withdrawn
            session.add(Round(number=2, state="select"))
            session.add(new_queue("round-02"))
        artifacts.show_queue(project, database)
        later = round_report(project, database)
    assert in_a_run == []
    assert [line.partition(":")[0] for line in shown] == ["**round-01**", "**round-01**"]
    assert page is not None
    assert later is not None
    assert "## The queue round-01" in page.page
    assert "## The queue round-01" in later.page


def test_many_threads_may_report_and_once_a_second_is_shown(
    rude: Path, monkeypatch: pytest.MonkeyPatch, in_a_run: list[str]
) -> None:
    shown: list[tuple[float, float]] = []
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.3)
    monkeypatch.setattr(
        artifacts, "create_progress_artifact", lambda p, k, d: shown.append((time.monotonic(), p))
    )
    monkeypatch.setattr(
        artifacts, "update_progress_artifact", lambda a, p, d: shown.append((time.monotonic(), p))
    )
    with (
        opened(rude) as (project, database),
        artifacts.scoring_progress(project, database, run_id=1, total=400) as progress,
    ):

        def work(number: int) -> None:
            for done in range(number + 1, 401, 4):
                progress("Scoring", done, 400)
                time.sleep(0.01)

        at_once(4, work)
    assert in_a_run == []
    percents = [percent for _, percent in shown]
    assert percents[-1] == 100
    assert percents == sorted(percents)
    assert 4 <= len(shown) <= 8
    assert all(later - sooner > 0.25 for (sooner, _), (later, _) in pairwise(shown[:-1]))


def test_there_is_no_report_before_there_is_a_round(squares: Path) -> None:
    with opened(squares) as (project, database):
        assert round_report(project, database) is None


def test_a_round_page_says_how_good_the_model_is_on_what_is_not_labeled() -> None:
    assert unlabeled([point(1)]) == []
    head, first, *_ = unlabeled([replace(point(1), unlabeled=pool_summary()), point(2)])
    assert head == "## On what is not labeled yet"
    assert first.startswith("Not labeled yet: r01 gets 12 % ")


def test_a_flow_logs_the_progress_of_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def train(step: object, project: object, database: object, *, progress: Progress) -> None:
        for done in range(1, 9):
            progress("train r01", done, 8)

    for name in ("LONG_SECONDS", "SETTLED_SECONDS"):
        monkeypatch.setattr(progress, name, 0)
    monkeypatch.setattr(runner, "as_task", train)
    monkeypatch.setattr(runner, "log_line", lines.append)
    runner.FlowRunner(project=None, database=None).call(train)  # type: ignore[arg-type]
    assert lines[0].startswith("train r01: 4 of 8 to go")
    assert lines[-1].startswith("train r01: 8 of 8 (100 %)")

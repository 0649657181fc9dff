"""A queue goes to a labeling server, and what is finished there comes back: each once, whatever happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from db.engine import Database
from db.queries import failures, queue_items, queues
from db.tables import utc_now
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.labeling.manifest import ManifestImage, read_manifest
from pipeline.labeling.servers.base import Pulled, Pushed, ServerError
from pipeline.operation import delivery
from pipeline.operation.runner import Runner
from pipeline.steps import sync as step
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.sync import PullReport, PushReport, open_server, pull, push
from tests.factories import ask
from tests.pipeline.labeling.answered import annotation, submitted
from tests.pipeline.labeling.exported_project import NAMES, Exported

URL = "http://labels.test"
NAME, OTHER = "left/frame 1.png", "right/frame 1.png"


class Server:
    """One that keeps what it is sent in memory."""

    url = URL

    def __init__(self) -> None:
        self.images: dict[str, list[int]] = {}
        self.finished: list[Path] = []
        self.finished_of: dict[str, list[Path]] = {}
        self.begun = False
        self.asked: list[dict[str, Any]] = []
        self.down = False
        self.newest = datetime(2026, 11, 5, tzinfo=UTC)

    def push(self, folder: Path, *, places: Sequence[str]) -> Pushed:
        self._answer()
        self.asked.append({"push": folder.name, "places": list(places)})
        entries = [one for one in read_manifest(folder / "manifest.jsonl") if isinstance(one, ManifestImage)]
        there = self.images.setdefault(entries[0].queue, [])
        new = [entry.image_id for entry in entries if entry.image_id not in there]
        there += new
        return Pushed(
            places=["7"], created=len(new), unchanged=len(entries) - len(new), page=f"{URL}/projects/7"
        )

    def pull(self, *, queue: str, places: Sequence[str], into: Path, since: datetime | None = None) -> Pulled:
        self._answer()
        self.asked.append({"pull": queue, "places": list(places), "since": since})
        files = [Path(shutil.copy(file, into)) for file in self.finished_of.get(queue, self.finished)]
        return Pulled(files=files, newest=self.newest if files else None)

    def is_begun(self, *, queue: str, places: Sequence[str]) -> bool:
        self._answer()
        return self.begun

    def retire(self, *, queue: str, places: Sequence[str]) -> int:
        self._answer()
        return len(self.images.pop(queue, []))

    def finish(self, exported: Exported, *names: str, first_label: str | None = None) -> None:
        """These images are labeled; with `first_label`, the first of them with a class of this name."""
        answers = [
            annotation(exported, name, exported.truth[name], number=number)
            for number, name in enumerate(names, start=1)
        ]
        if first_label is not None:
            answers[0]["result"][0]["value"]["brushlabels"] = [first_label]
        self.finished = [submitted(exported, exported.project.root / "page-1.json", answers)]

    def _answer(self) -> None:
        if self.down:
            raise ServerError(f"{URL} cannot be reached.", "Start it.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    def opened(project: Project, database: Database, tool: str, url: str | None = None) -> Server:
        assert (tool, url) in (("label-studio", None), ("label-studio", URL))
        return made

    monkeypatch.setattr(step, "open_server", opened)
    return made


@dataclass
class Synced:
    """What a sync has done, and its log."""

    pulled: PullReport | None
    pushed: PushReport | None
    lines: list[str]


def sync(project: Project, database: Database, *, tool: str) -> Synced:
    lines: list[str] = []
    pulled, pushed = delivery.sync(Runner(project, database, log=lines.append), tool=tool)
    return Synced(pulled, pushed, lines)


def synced(selected: Exported, **labeling: Any) -> Project:
    settings = {"tool": "label-studio", "sync": True, "label_studio": {"url": URL}}
    return selected.configured(labeling=settings | labeling)


def unknown_class(selected: Exported, name: str, *, number: int) -> dict[str, Any]:
    """An annotation that cannot be imported."""
    wrong = annotation(selected, name, selected.truth[name], number=number)
    wrong["result"][0]["value"]["brushlabels"] = ["nothing of ours"]
    return wrong


def rejected(selected: Exported) -> list[str]:
    """The subjects of the import's recorded failures."""
    return [row.subject for row in ask(selected.database, failures.list_failures, step="import")]


def test_sync_exports_pushes_and_remembers_where_the_queue_lies(selected: Exported, server: Server) -> None:
    report = sync(*selected, tool="label-studio")
    assert report.pulled is None
    assert report.pushed is not None
    assert (report.pushed.created, report.pushed.unchanged) == (len(NAMES), 0)
    assert any(f"{URL}/projects/7" in line for line in report.lines)
    with selected.database.session(write=False) as session:
        (queue,) = queues.list_queues(session)
        lying = [(place.tool, place.url, place.place) for place in queues.places_of(session, queue.id)]
    assert lying == [
        ("label-studio", "", "queues/round-01-label-studio"),
        ("label-studio", URL, "7"),
    ]
    assert selected.state() == (1, "import")


def test_a_second_sync_sends_nothing_and_imports_what_is_finished(selected: Exported, server: Server) -> None:
    sync(*selected, tool="label-studio")
    server.finish(selected, NAME)
    report = sync(*selected, tool="label-studio")
    assert report.pulled is not None
    assert [one.imported for one in report.pulled.imported] == [1]
    assert report.pushed is not None
    assert (report.pushed.created, report.pushed.unchanged) == (0, len(NAMES))
    assert [label.annotator for label in selected.labels()] == ["ann@example.org"]


def test_a_pull_goes_on_where_the_last_one_ended_and_imports_everything_once(
    selected: Exported, server: Server
) -> None:
    sync(*selected, tool="label-studio")
    server.finish(selected, NAME)
    pull(*selected, tool="label-studio")
    again = pull(*selected, tool="label-studio")
    assert [one["since"] for one in server.asked if "pull" in one] == [
        None,
        datetime(2026, 11, 5, tzinfo=UTC),
    ]
    assert [(one.imported, one.unchanged) for one in again.imported] == [(0, 1)]
    assert len(selected.labels()) == 1


def test_a_pull_that_could_not_be_imported_is_fetched_again(
    selected: Exported, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(*selected, tool="label-studio")
    server.finish(selected, NAME)

    def die(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step, "import_labels", die)
        with pytest.raises(KeyboardInterrupt):
            pull(*selected, tool="label-studio")
    report = pull(*selected, tool="label-studio")
    assert server.asked[-1]["since"] is None
    assert [one.imported for one in report.imported] == [1]


def test_what_a_server_sends_and_cannot_be_taken_is_on_record_under_its_address(
    selected: Exported, server: Server
) -> None:
    sync(*selected, tool="label-studio")
    server.finish(selected, NAME, OTHER, first_label="nothing of ours")
    report = pull(*selected, tool="label-studio")
    assert [(one.imported, len(one.rejected)) for one in report.imported] == [(1, 1)]
    (failure,) = ask(selected.database, failures.list_failures, step="import")
    assert failure.subject.startswith(f"{URL}, round-01: page-1.json")
    assert "nothing of ours" in failure.reason


def test_what_was_rejected_of_one_queue_outlives_the_pull_of_the_next_queue(
    selected: Exported, server: Server, tmp_path: Path
) -> None:
    sync(selected.project, selected.database, tool="label-studio")
    wrong = submitted(selected, tmp_path / "first.json", [unknown_class(selected, NAME, number=1)])
    with selected.database.session() as session:
        item = queue_items.queue_items(session, 1)[0]
        names = ("rank", "image_id", "region_index", "x", "y", "w", "h", "slice", "reason")
        kept = {name: getattr(item, name) for name in names}
        review = queues.put_review(
            session, run_id=None, strategy="doubt", unit="region", spec={}, items=[kept]
        )
        queues.record_place(session, queue_id=review.id, tool="label-studio", url=URL, place="7")
    answer = annotation(selected, NAME, selected.truth[NAME], number=2)
    server.finished_of = {
        "round-01": [wrong],
        "review-01": [submitted(selected, tmp_path / "second.json", [answer])],
    }
    report = pull(selected.project, selected.database, tool="label-studio")
    assert [(one.queue, one.imported, len(one.rejected)) for one in report.imported] == [
        ("round-01", 0, 1),
        ("review-01", 1, 0),
    ]
    (subject,) = rejected(selected)
    assert subject.startswith(f"{URL}, round-01: first.json")


def test_what_was_rejected_stays_on_record_until_that_annotation_comes_again(
    selected: Exported, server: Server, tmp_path: Path
) -> None:
    sync(selected.project, selected.database, tool="label-studio")
    page = tmp_path / "page.json"
    for answer, left in (
        (unknown_class(selected, NAME, number=1), 1),
        (annotation(selected, OTHER, selected.truth[OTHER], number=2), 1),
        (annotation(selected, NAME, selected.truth[NAME], number=1), 0),
    ):
        server.finished = [submitted(selected, page, [answer])]
        pull(selected.project, selected.database, tool="label-studio")
        assert len(rejected(selected)) == left


def test_an_import_of_files_leaves_what_a_server_sent_on_record(
    selected: Exported, server: Server, tmp_path: Path
) -> None:
    sync(selected.project, selected.database, tool="label-studio")
    server.finished = [submitted(selected, tmp_path / "page.json", [unknown_class(selected, NAME, number=1)])]
    pull(selected.project, selected.database, tool="label-studio")
    for name, left in (("wrong", 2), ("right", 1)):
        answer = annotation(selected, OTHER, selected.truth[OTHER], number=2)
        if name == "wrong":
            answer = unknown_class(selected, OTHER, number=2)
        source = submitted(selected, tmp_path / f"{name}.json", [answer])
        import_labels(selected.project, selected.database, source=source)
        assert len(rejected(selected)) == left


def test_all_of_the_queue_finished_closes_the_round_and_nothing_more_is_sent(
    selected: Exported, server: Server
) -> None:
    sync(*selected, tool="label-studio")
    server.finish(selected, *NAMES)
    report = sync(*selected, tool="label-studio")
    assert report.pulled is not None
    assert report.pulled.closed
    assert report.pushed is None
    assert selected.state() == (2, "train")


def test_closing_while_pulling_releases_what_is_not_finished(selected: Exported, server: Server) -> None:
    sync(*selected, tool="label-studio")
    pull(*selected, tool="label-studio", close=True)
    assert {item.status for item in selected.items()} == {"released"}
    assert selected.state() == (2, "train")


def test_nothing_to_pull_before_anything_was_pushed(exported: Exported, server: Server) -> None:
    with pytest.raises(UserError, match="No queue of this project is at"):
        pull(*exported, tool="label-studio")


def test_a_queue_by_name_is_pushed_from_its_folder(selected: Exported, server: Server) -> None:
    folder = export(*selected, to="label-studio").folder
    report = push(*selected, folder=folder, tool="label-studio", queue="round-01")
    assert report.queue == "round-01"
    assert server.asked == [{"push": "round-01-label-studio", "places": []}]
    with pytest.raises(UserError, match="There is no queue 'round-99'"):
        push(*selected, folder=folder, tool="label-studio", queue="round-99")


def test_a_nightly_run_pulls_first_and_pushes_last(selected: Exported, server: Server) -> None:
    project = synced(selected)
    lines: list[str] = []
    export(project, selected.database)
    assert delivery.pull_labels(Runner(project, selected.database, log=lines.append)) == 0
    assert lines == []
    delivery.push_queue(Runner(project, selected.database, log=lines.append))
    assert lines[0] == f"round-01: {len(NAMES)} images pushed to {URL}, 0 were there already."
    server.finish(selected, NAME)
    assert delivery.pull_labels(Runner(project, selected.database, log=lines.append)) == 0
    assert "round-01: 1 mask imported, 0 unchanged." in lines


def test_a_queue_that_was_exported_before_the_server_was_configured_is_pushed_by_the_next_nightly_run(
    selected: Exported, server: Server
) -> None:
    export(*selected)
    project = synced(selected)
    delivery.push_queue(Runner(project, selected.database))
    assert [one["push"] for one in server.asked] == ["round-01-label-studio"]
    assert len(server.images["round-01"]) == len(NAMES)


def test_a_label_from_the_future_hides_none_that_comes_before_it(selected: Exported, server: Server) -> None:
    project = synced(selected)
    export(project, selected.database)
    delivery.push_queue(Runner(project, selected.database))
    server.newest = datetime(2999, 1, 1, tzinfo=UTC)
    server.finish(selected, NAME)
    delivery.pull_labels(Runner(project, selected.database))
    delivery.pull_labels(Runner(project, selected.database))
    since = server.asked[-1]["since"]
    assert since is not None
    assert since <= utc_now()


def test_a_nightly_run_goes_on_while_the_server_is_away(selected: Exported, server: Server) -> None:
    project = synced(selected)
    export(project, selected.database)
    delivery.push_queue(Runner(project, selected.database))
    server.down = True
    with pytest.raises(UserError, match=f"No labels were pulled: {URL} cannot be reached"):
        delivery.pull_labels(Runner(project, selected.database))
    with pytest.raises(UserError, match=f"The queue was not pushed: {URL} cannot be reached"):
        delivery.push_queue(Runner(project, selected.database))


def test_without_sync_a_nightly_run_asks_no_server(selected: Exported, server: Server) -> None:
    export(*selected)
    server.down = True
    assert delivery.pull_labels(Runner(*selected)) == 0
    delivery.push_queue(Runner(*selected))


def test_a_queue_that_somebody_has_begun_there_is_not_withdrawn(selected: Exported, server: Server) -> None:
    sync(*selected, tool="label-studio")
    (queue,) = ask(selected.database, queues.list_queues)
    assert not delivery.is_begun(*selected, queue)
    server.begun = True
    assert delivery.is_begun(*selected, queue)


def test_a_queue_that_is_withdrawn_leaves_the_server(selected: Exported, server: Server) -> None:
    sync(*selected, tool="label-studio")
    (queue,) = ask(selected.database, queues.list_queues)
    assert delivery.withdraw(*selected, queue) == len(selected.items())
    assert server.images == {}
    assert selected.state() == (1, "select")


def test_a_queue_in_files_of_a_tool_counts_as_begun(selected: Exported, server: Server) -> None:
    export(*selected, to="label-studio")
    (queue,) = ask(selected.database, queues.list_queues)
    assert delivery.is_begun(*selected, queue)


def test_a_token_and_an_address_are_asked_for(selected: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"labeling\.label_studio\.url"):
        open_server(*selected, "label-studio")
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY"):
        open_server(*selected, "label-studio", URL)
    with pytest.raises(ConfigError, match="no tool with a server"):
        open_server(*selected, "coco", URL)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123")
    project = synced(selected, label_studio={"url": URL + "/"})
    assert open_server(project, selected.database, "label-studio").url == URL


def test_nights_without_a_server_to_ask_are_refused_in_the_configuration(selected: Exported) -> None:
    for tool in ("label-studio", "cvat", "coco"):
        with pytest.raises(ValueError, match="`sync` needs a server"):
            selected.configured(labeling={"tool": tool, "sync": True})


@pytest.mark.parametrize("url", ["labels.test", "ftp://labels.test", "http://ann:secret@labels.test"])
def test_an_address_that_is_none_is_refused_in_the_configuration(selected: Exported, url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        selected.configured(labeling={"label_studio": {"url": url}})


def test_tasks_of_the_exported_folder_are_in_rank_order(selected: Exported) -> None:
    folder = export(*selected, to="label-studio").folder
    tasks = json.loads((folder / "tasks.json").read_text())
    ranks = [task["data"]["rank"] for task in tasks]
    assert ranks == sorted(ranks)
    assert len(tasks) == len(NAMES)

"""What a night does, given where the project stands; without Prefect."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text

from db.queries import models
from db.queries.failures import list_failures
from db.tables import Base, Queue, QueueItem
from pipeline.errors import Busy, UserError
from pipeline.operation.new_model import close_round
from pipeline.operation.nightly import NightlyReport, run_nightly, update_queue
from pipeline.operation.retrain import run_retrain
from pipeline.operation.runner import Runner
from pipeline.steps.annotate import annotate
from pipeline.steps.import_labels import import_labels
from pipeline.summaries.project import project_status
from tests.conftest import QUICK, another_process, draw, label_regions, opened, set_option, write_config
from tests.factories import ask


def everything(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables but the leases, and the identity, which a project's first command writes."""
    with opened(folder) as (_, database), database.session(write=False) as session:
        return {
            name: [tuple(row) for row in session.execute(select(table))]
            for name, table in Base.metadata.tables.items()
            if name not in ("lease", "identity")
        }


def nightly(folder: Path, *, runner: type[Runner] = Runner, **options: Any) -> NightlyReport:
    with opened(folder) as (project, database):
        return run_nightly(runner(project, database, **options))


def add_images(folder: Path, *seeds: int) -> None:
    for seed in seeds:
        draw(folder / "images", None, name=f"new_{seed}.png", seed=seed)


def items(folder: Path, queue: str) -> list[str]:
    """The status of each item of a queue."""
    with opened(folder) as (_, database), database.session(write=False) as session:
        found = (
            select(QueueItem.status).join(Queue, Queue.id == QueueItem.queue_id).where(Queue.name == queue)
        )
        return list(session.scalars(found.order_by(QueueItem.rank)))


def killed_before(step_name: str) -> type[Runner]:
    """A runner that is killed before the step of this name."""

    class Killed(Runner):
        def call(self, step: Callable[..., Any], **options: Any) -> Any:
            if step.__name__ == step_name:
                raise KeyboardInterrupt
            return super().call(step, **options)

    return Killed


def test_the_first_night_after_a_training_scores_the_pool_and_exports_the_queue(trained: Path) -> None:
    lines: list[str] = []
    report = nightly(trained, log=lines.append)
    assert (report.model, report.added, report.queue) == ("r01", 0, "round-01")
    assert report.scored == 8
    assert report.folder is not None
    assert report.folder == trained / "queues" / "round-01"
    assert (report.folder / "manifest.jsonl").is_file()
    assert "round-01 is active: 6 regions to label." in report.summary
    assert any("scored 8 images" in line for line in lines)


def test_a_night_with_nothing_new_writes_nothing_and_loads_no_model(out: Path) -> None:
    nightly(out)  # the files of the copied project are new to it, once
    before = everything(out)
    code = (
        "import sys\nfrom flows.cli import main\nsys.argv = ['segcurate', 'nightly']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules, 'prefect' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "6 of 6 regions wait for labels." in " ".join(ran.stdout.split())
    assert ran.stdout.rstrip().endswith("False False")
    assert everything(out) == before


def test_an_unlabeled_queue_gives_way_to_a_new_one_when_new_images_are_scored(out: Path) -> None:
    add_images(out, 50, 51)
    report = nightly(out)
    assert (report.added, report.scored, report.queue) == (2, 2, "round-01-b")
    assert "round-01 was withdrawn unlabeled, 6 regions; round-01-b is active: 6 regions" in report.summary
    assert (out / "queues" / "round-01" / "manifest.jsonl").is_file()
    assert items(out, "round-01") == ["released"] * 6
    assert items(out, "round-01-b") == ["queued"] * 6
    report = nightly(out)
    assert (report.scored, report.queue, report.folder) == (0, "round-01-b", None)


def test_masks_of_a_queue_that_was_withdrawn_are_still_taken(out: Path) -> None:
    add_images(out, 50)
    assert nightly(out).queue == "round-01-b"
    with opened(out) as (project, database):
        annotate(project, database, out / "queues" / "round-01")
        report = import_labels(project, database, source=out / "queues" / "round-01", origin="simulation")
        assert ask(database, models.count_new_labels) == 6
        assert ask(database, project_status).queue == "round-01-b"
    assert (report.queue, report.closed, report.rejected) == ("round-01", False, [])
    assert items(out, "round-01") == ["labeled"] * 6
    assert items(out, "round-01-b") == ["queued"] * 6


@pytest.mark.parametrize("begun", ["a file", "a label", "never"])
def test_a_queue_that_somebody_has_begun_or_that_shall_stay_stays(out: Path, begun: str) -> None:
    queue = out / "queues" / "round-01"
    if begun == "a file":
        (queue / "masks" / "half_done.xcf").write_bytes(b"0")
    if begun == "a label":
        label_regions(out, at_least=1)
        for path in (queue / "masks").iterdir():
            path.unlink()
    if begun == "never":
        set_option(out, "nightly", "refresh", "never")
    add_images(out, 50, 51)
    report = nightly(out)
    waiting = items(out, "round-01").count("queued")
    assert (report.scored, report.queue, report.folder) == (2, "round-01", None)
    assert (
        f"round-01 is active: {waiting} of 6 regions wait for labels; 2 new images are scored and wait for "
        "the next queue." in report.summary
    )
    assert waiting < 6 if begun == "a label" else waiting == 6


def test_a_change_of_the_scorer_scores_the_pool_anew_and_renews_an_unlabeled_queue(out: Path) -> None:
    set_option(out, "scoring", "regions", {"kind": "grid", "cell": 12})
    report = nightly(out)
    assert (report.scored, report.queue) == (8, "round-01-b")


def test_nights_that_are_killed_before_each_step_end_where_an_undisturbed_one_does(
    trained: Path, out: Path
) -> None:
    for step in ("score", "select", "export"):
        with pytest.raises(KeyboardInterrupt):
            nightly(trained, runner=killed_before(step))
    report = nightly(trained)
    assert (report.queue, report.folder) == ("round-01", trained / "queues" / "round-01")
    wanted = ("rank", "image_id", "x", "y", "slice", "score", "status", "reason")
    columns = [QueueItem.__table__.c[name] for name in wanted]
    found: list[Sequence[Any]] = []
    for folder in (trained, out):
        with opened(folder) as (_, database), database.session(write=False) as session:
            found.append(session.execute(select(*columns).order_by("queue_id", "rank")).all())
    assert found[0] == found[1]


def test_a_night_that_was_killed_after_it_withdrew_a_queue_selects_the_next_one(out: Path) -> None:
    add_images(out, 50)
    with pytest.raises(KeyboardInterrupt):
        nightly(out, runner=killed_before("select"))
    assert items(out, "round-01") == ["released"] * 6
    assert nightly(out).queue == "round-01-b"


def test_a_draft_from_before_new_images_is_selected_again(trained: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        nightly(trained, runner=killed_before("export"))
    add_images(trained, 50)
    report = nightly(trained)
    assert report.queue == "round-01"
    with opened(trained) as (_, database), database.session(write=False) as session:
        (queue,) = session.scalars(select(Queue).where(Queue.kind == "selected"))
        assert queue.spec["images"] == 9


def test_a_new_file_that_cannot_be_read_is_recorded_and_the_night_goes_on(out: Path) -> None:
    add_images(out, 50)
    (out / "images" / "broken.png").write_bytes(b"no image")
    report = nightly(out)
    assert (report.added, report.scored) == (1, 1)
    with opened(out) as (_, database), database.session(write=False) as session:
        assert [row.subject for row in list_failures(session)] == ["images/broken.png"]


def test_a_pool_without_anything_left_to_choose_is_no_failure(out: Path) -> None:
    for key, value in (("budget", 1000), ("per_image_cap", 1000), ("no_touching", False)):
        set_option(out, "selection", key, value)
    withdraws = ("UPDATE round SET state = 'select'", "UPDATE queue SET round_id = NULL")
    for night_of in ("all that is left", "nothing"):
        with opened(out) as (_, database), database.session() as session:
            for statement in withdraws:
                session.execute(text(statement))
        report = nightly(out)
        assert (report.queue is None) == (night_of == "nothing")
    assert "nothing is left to choose from" in report.summary
    assert report.queue is None


def test_looking_at_an_active_queue_takes_no_write_lock(out: Path) -> None:
    with opened(out) as (project, database):
        begun: list[str] = []
        event.listen(database.engine, "before_cursor_execute", lambda *call: begun.append(call[2]))
        update = update_queue(Runner(project, database))
    assert (update.name, update.folder) == ("round-01", None)
    assert "BEGIN DEFERRED" in begun
    assert "BEGIN IMMEDIATE" not in begun


def test_the_second_of_two_nights_at_once_ends_with_a_clear_word(out: Path) -> None:
    with opened(out) as (project, database):
        with (
            another_process(database, at="nightly") as process,
            pytest.raises(Busy, match=f"already runs `nightly`: process {process} on"),
        ):
            run_nightly(Runner(project, database))
        assert run_nightly(Runner(project, database)).queue == "round-01"


def test_a_round_that_a_retraining_closes_meanwhile_is_no_failure(trained: Path) -> None:
    class Closing(Runner):
        def call(self, step: Callable[..., Any], **options: Any) -> Any:
            if step.__name__ == "select":
                close_round(self.project, self.database)
            return super().call(step, **options)

    report = nightly(trained, runner=Closing)
    assert (report.scored, report.queue) == (8, None)
    assert "a retraining has closed the round meanwhile" in report.summary


def test_a_project_without_a_model_says_what_comes_next(squares: Path) -> None:
    set_option(squares, "nightly", "retrain", "never")
    report = nightly(squares)
    assert (report.added, report.model) == (24, None)
    assert "`segcurate retrain`" in report.summary


def test_the_first_night_of_a_project_trains_its_model_and_exports_a_queue(squares: Path) -> None:
    write_config(squares, **QUICK)
    report = nightly(squares)
    assert (report.added, report.trained, report.model) == (24, "r01", "r01")
    assert (report.queue, report.warnings) == ("round-01", ())


@pytest.mark.parametrize("closed", [True, False])
def test_a_night_trains_a_model_that_is_due_and_exports_the_next_queue(out: Path, closed: bool) -> None:
    label_regions(out, at_least=1 if closed else 4, close=closed)
    report = nightly(out)
    assert (report.trained, report.queue) == ("r02", "round-02")
    assert report.summary.startswith("r02 is")
    assert report.warnings == ()


def test_nights_alone_finish_a_retraining_that_is_killed_before_each_step(out: Path) -> None:
    label_regions(out, at_least=4)
    with opened(out) as (project, database), pytest.raises(KeyboardInterrupt):
        run_retrain(killed_before("calibrate")(project, database))
    for step in ("calibrate", "evaluate", "score", "select", "export"):
        with pytest.raises(KeyboardInterrupt):
            nightly(out, runner=killed_before(step))
    assert nightly(out).queue == "round-02"


def test_labels_wait_where_a_night_shall_not_train(out: Path) -> None:
    set_option(out, "nightly", "retrain", "never")
    label_regions(out, at_least=4)
    report = nightly(out)
    assert (report.trained, report.queue) == (None, "round-01")


def test_a_training_that_cannot_begin_closes_no_round_and_the_old_model_scores(out: Path) -> None:
    label_regions(out, at_least=4)
    queued = items(out, "round-01")
    set_option(out, "model", "encoder_weights", "weights/missing.safetensors")
    set_option(out, "training", "warm_start", False)
    with pytest.raises(UserError, match="missing"):  # nothing else is left to do
        nightly(out)
    add_images(out, 50)
    report = nightly(out)
    assert (report.scored, report.trained, report.queue) == (1, None, "round-01")
    assert "missing" in report.warnings[0]
    with opened(out) as (project, database), pytest.raises(UserError, match="missing"):
        run_retrain(Runner(project, database))
    assert items(out, "round-01") == queued


def test_a_queue_is_withdrawn_only_when_its_successor_can_be_written(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_images(out, 50)
    monkeypatch.setattr("pipeline.files.LEAST_SPACE", 2**62)
    report = nightly(out)
    assert (report.scored, report.folder) == (1, None)
    assert "MiB are needed" in report.warnings[0]
    assert items(out, "round-01") == ["queued"] * 6
    monkeypatch.undo()
    assert nightly(out).queue == "round-01-b"


def test_a_model_that_is_promoted_while_a_night_scores_queues_in_the_same_night(out: Path) -> None:
    class Promoting(Runner):
        def call(self, step: Callable[..., Any], **options: Any) -> Any:
            done = super().call(step, **options)
            if step.__name__ == "score" and not promoted:
                promoted.append("r02")
                run_retrain(Runner(self.project, self.database), then_nightly=False)
            return done

    promoted: list[str] = []
    set_option(out, "nightly", "retrain", "never")
    set_option(out, "evaluation", "promote_tolerance", 1.0)
    label_regions(out, at_least=4)
    add_images(out, 50)
    assert nightly(out, runner=Promoting).queue == "round-02"


def test_a_retraining_beside_a_night_is_not_in_vain(out: Path) -> None:
    label_regions(out, at_least=4)
    with opened(out) as (project, database), another_process(database, at="nightly"):
        report = run_retrain(Runner(project, database))
    assert (report.name, report.nightly) == ("r02", None)
    assert "Another process already runs `nightly`" in report.summary
    assert nightly(out).queue == "round-02"


def test_a_night_with_a_file_that_cannot_be_read_says_so(out: Path) -> None:
    (out / "images" / "broken.png").write_bytes(b"no image")
    assert nightly(out).warnings == ("1 file could not be used: `segcurate failures` says why.",)

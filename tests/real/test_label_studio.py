"""A real Label Studio server, and a person's browser in front of it.

`SEGCURATE_LABEL_STUDIO` names its command; `SEGCURATE_SCREENSHOTS=folder` keeps pictures of its pages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.labeling.exchange import Annotation
from pipeline.labeling.label_studio import LABEL_STUDIO
from pipeline.labeling.label_studio.tasks import CONFIG, mask_results
from pipeline.labeling.outgoing import OutgoingImage
from pipeline.labeling.servers import label_studio as label_studio_module
from pipeline.labeling.servers.base import Pushed, ServerError
from pipeline.labeling.servers.label_studio import LabelStudioServer
from tests.pipeline.labeling.label_studio.synthetic import (
    CLASSES,
    export,
    label_map,
    outgoing_images,
    outgoing_queue,
    truth,
)
from tests.real.label_studio_server import (
    EMAIL,
    PASSWORD,
    TOKEN,
    RunningLabelStudio,
    executable,
)

COMMAND = executable()
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(COMMAND is None, reason="no Label Studio: SEGCURATE_LABEL_STUDIO names none"),
    pytest.mark.timeout(900),
]
QUEUE = "round-03"


@pytest.fixture(scope="module")
def server(label_studio_server: RunningLabelStudio) -> RunningLabelStudio:
    return label_studio_server


@dataclass
class Job:
    """A queue on the server, in a project of its own."""

    running: RunningLabelStudio
    tool: LabelStudioServer
    folder: Path
    images: list[OutgoingImage]
    pushed: Pushed

    @property
    def project(self) -> str:
        return self.pushed.places[0]

    def annotate(self, place: int, mask: npt.NDArray[np.uint8] | None, **more: Any) -> Any:
        """What the front end sends when somebody submits; None submits no shape at all."""
        task = self.running.tasks(self.project)[place]
        kind = "bitmask" if task["predictions"][0]["result"][0]["type"] == "bitmasklabels" else "brush"
        image = self.images[place]
        result: list[Any] = [
            region for region in task["predictions"][0]["result"] if region["from_name"] == "look"
        ]
        if mask is not None:
            result += mask_results(mask, CLASSES, image_id=image.image_id, masks=kind)
        body = {"result": result, "lead_time": 12.5, **more}
        return self.running.post(f"/api/tasks/{task['id']}/annotations/", body)

    def pull(self, since: datetime | None = None) -> tuple[list[Annotation], datetime | None]:
        into = self.folder.parent / "pulled"
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        pulled = self.tool.pull(queue=QUEUE, places=self.pushed.places, into=into, since=since)
        answers = [answer for file in pulled.files for answer in LABEL_STUDIO.read(file, label_map())]
        assert all(isinstance(answer, Annotation) for answer in answers)
        assert all(LABEL_STUDIO.recognises(file) for file in pulled.files)
        return [answer for answer in answers if isinstance(answer, Annotation)], pulled.newest


@pytest.fixture
def job(server: RunningLabelStudio, tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    return make_job(server, tmp_path, name=request.node.name)


def make_job(server: RunningLabelStudio, folder: Path, *, name: str, **settings: Any) -> Job:
    images = outgoing_images(folder / "source")
    exported = export(folder / QUEUE, outgoing_queue(QUEUE), images)
    tool = LabelStudioServer(server.url, TOKEN, project=name, project_id=name, **settings)
    return Job(server, tool, exported, images, tool.push(exported, places=[]))


def paths_of(server: RunningLabelStudio, project: str) -> list[str]:
    """The addresses of all pictures of a project's tasks."""
    return [
        path for task in server.tasks(project) for path in (task["data"]["image"], *task["data"]["heatmaps"])
    ]


def next_images(job: Job) -> list[int]:
    """The images in the order in which the server hands out their tasks to somebody who skips each."""
    order: list[int] = []
    for _ in job.images:
        task = job.running.get(f"/api/projects/{job.project}/next")
        order.append(task["data"]["image_id"])
        job.running.post(f"/api/tasks/{task['id']}/annotations/", {"result": [], "lead_time": 1})
    return order


def test_a_queue_becomes_a_project_with_a_task_an_image_and_again_nothing(job: Job) -> None:
    assert (job.pushed.created, job.pushed.unchanged) == (len(job.images), 0)
    project = job.running.get(f"/api/projects/{job.project}/")
    assert project["model_version"] == "round-03 r02"
    assert project["label_config"].strip() == (job.folder / CONFIG).read_text().strip()
    assert job.pushed.page == f"{job.running.url}/projects/{job.project}/data"
    for places in (job.pushed.places, [], ["999999"]):
        again = job.tool.push(job.folder, places=places)
        assert (again.places, again.created, again.unchanged) == (job.pushed.places, 0, len(job.images))
    assert [task["data"]["image_id"] for task in job.running.tasks(job.project)] == [
        image.image_id for image in job.images
    ]


def test_the_configuration_is_valid_to_the_server(job: Job) -> None:
    for masks in ("brush", "bitmask"):
        config = export(job.folder.parent / masks, outgoing_queue(), job.images, masks=masks) / CONFIG
        answer = job.running.client.post("/api/projects/validate/", json={"label_config": config.read_text()})
        assert answer.status_code == 204, answer.text


def test_uploaded_pictures_are_shown_and_sent_once(job: Job) -> None:
    for path in paths_of(job.running, job.project):
        answer = job.running.client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    uploads = job.running.get(f"/api/projects/{job.project}/file-uploads", all="true")
    next_queue = export(job.folder.parent / "round-04", outgoing_queue("round-04"), job.images)
    assert job.tool.push(next_queue, places=job.pushed.places).created == len(job.images)
    assert job.running.get(f"/api/projects/{job.project}/file-uploads", all="true") == uploads
    assert job.running.get(f"/api/projects/{job.project}/")["model_version"] == "round-04 r02"


def test_pictures_below_the_document_root_are_shown_without_sending_them(server: RunningLabelStudio) -> None:
    folder = server.document_root / "here"
    made = make_job(server, folder, name="local files", images="local", document_root=server.document_root)
    made.tool.push(made.folder, places=made.pushed.places)
    assert len(server.get("/api/storages/localfiles/", project=made.project)) == 1
    for path in paths_of(server, made.project):
        assert path.startswith("/data/local-files/?d=here/round-03/")
        assert server.client.get(path).status_code == 200
    assert len(server.tasks(made.project)) == len(made.images)


def test_a_folder_that_the_server_does_not_show_is_said_to_be_one(
    server: RunningLabelStudio, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match="LOCAL_FILES_DOCUMENT_ROOT|subdirectory"):
        make_job(server, tmp_path, name="elsewhere", images="local", document_root=tmp_path)


def test_images_that_have_an_address_keep_it(server: RunningLabelStudio, tmp_path: Path) -> None:
    made = make_job(server, tmp_path, name="addresses", images="https://frames.example.org/")
    assert server.tasks(made.project)[1]["data"]["image"] == (
        "https://frames.example.org/%E6%97%A5%E6%9C%AC/%E6%99%AF%E8%89%B2%20%28noon%29.jpg"
    )


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_push_that_was_killed_is_taken_up(
    server: RunningLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    images = outgoing_images(tmp_path / "source")
    folder = export(tmp_path / QUEUE, outgoing_queue(QUEUE), images)
    monkeypatch.setattr(label_studio_module, "CHUNK_TASKS", 2)
    name = f"killed {killed_after}"
    tool = LabelStudioServer(server.url, TOKEN, project=name, project_id=name)
    add = tool._api.add_tasks  # pyright: ignore[reportPrivateUsage]
    calls: list[int] = []

    def dying(project: int, tasks: Sequence[bytes]) -> None:
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        calls.append(project)
        add(project, tasks)

    monkeypatch.setattr(tool._api, "add_tasks", dying)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(KeyboardInterrupt):
        tool.push(folder, places=[])
    tool = LabelStudioServer(server.url, TOKEN, project=name, project_id=name)
    pushed = tool.push(folder, places=[])
    assert (pushed.created, pushed.unchanged) == (len(images) - 2 * killed_after, 2 * killed_after)
    assert [task["data"]["image_id"] for task in server.tasks(pushed.places[0])] == [
        image.image_id for image in images
    ]


@pytest.mark.parametrize("sampling", ["Sequential sampling", "Uncertainty sampling"])
def test_tasks_are_handed_out_in_the_order_of_their_ranks(
    server: RunningLabelStudio, tmp_path: Path, sampling: Any
) -> None:
    made = make_job(server, tmp_path, name=sampling, sampling=sampling)
    assert next_images(made) == [image.image_id for image in made.images]


@pytest.mark.parametrize("masks", ["bitmask", "brush"])
def test_masks_come_back_exactly(server: RunningLabelStudio, tmp_path: Path, masks: Any) -> None:
    made = make_job(server, tmp_path, name=f"exact {masks}", masks=masks)
    painted = [truth(image.width, image.height, seed=99 + image.position) for image in made.images]
    for place, mask in enumerate(painted):
        made.annotate(place, mask)
    answers, _ = made.pull()
    by_image = {answer.image: answer for answer in answers}
    assert len(answers) == len(made.images)
    for image, mask in zip(made.images, painted, strict=True):
        answer = by_image[image.image_id]
        np.testing.assert_array_equal(answer.read(image.width, image.height).mask, mask)
        assert (answer.queue, answer.sha256, answer.annotator) == (QUEUE, image.sha256, EMAIL)
        assert (answer.seconds, answer.skipped) == (12.5, False)


def test_what_people_export_by_hand_is_the_same_as_what_is_pulled(job: Job) -> None:
    job.annotate(0, truth(96, 64, seed=5))
    job.annotate(1, None, was_cancelled=True)
    file = job.folder / "project-1-at-2026.json"
    file.write_bytes(job.running.client.get(f"/api/projects/{job.project}/export?exportType=JSON").content)
    assert LABEL_STUDIO.recognises(file)
    assert LABEL_STUDIO.recognises(job.folder)
    by_hand = [
        answer for answer in LABEL_STUDIO.read(job.folder, label_map()) if isinstance(answer, Annotation)
    ]
    pulled, _ = job.pull()
    for one, other in zip(by_hand, pulled, strict=True):
        assert (one.image, one.origin, one.labeled_at) == (other.image, other.origin, other.labeled_at)
        assert one.skipped == other.skipped
    np.testing.assert_array_equal(by_hand[0].read(96, 64).mask, pulled[0].read(96, 64).mask)


def test_a_skipped_task_and_a_changed_annotation_are_pulled_as_such(job: Job) -> None:
    first = job.annotate(0, truth(96, 64, seed=1))
    job.annotate(1, None, was_cancelled=True)
    before, newest = job.pull()
    assert [answer.skipped for answer in before] == [False, True]
    assert newest is not None
    changed = truth(96, 64, seed=2)
    results = mask_results(changed, CLASSES, image_id=40, masks="bitmask")
    job.running.patch(f"/api/annotations/{first['id']}/", {"result": results})
    after, later = job.pull(since=newest)
    (again,) = [answer for answer in after if not answer.skipped]
    assert again.origin == before[0].origin
    assert again.labeled_at is not None
    assert again.labeled_at == later
    assert before[0].labeled_at is not None
    assert again.labeled_at > before[0].labeled_at
    np.testing.assert_array_equal(again.read(96, 64).mask, changed)
    assert job.pull(since=datetime(2100, 1, 1, tzinfo=UTC)) == ([], None)


def test_what_nobody_has_begun_is_retired(job: Job) -> None:
    assert not job.tool.is_begun(queue=QUEUE, places=job.pushed.places)
    tasks = job.running.tasks(job.project)
    draft = {"result": mask_results(truth(96, 64), CLASSES, image_id=40, masks="bitmask"), "lead_time": 1}
    job.running.post(f"/api/tasks/{tasks[0]['id']}/drafts", draft)
    assert job.tool.is_begun(queue=QUEUE, places=job.pushed.places)
    job.annotate(1, None, was_cancelled=True)
    job.annotate(2, truth(70, 50))
    assert job.pull()[0][0].skipped  # a draft is no answer
    assert job.tool.retire(queue=QUEUE, places=job.pushed.places) == len(job.images) - 3
    assert [task["id"] for task in job.running.tasks(job.project)] == [task["id"] for task in tasks[:3]]
    assert job.tool.retire(queue=QUEUE, places=job.pushed.places) == 0
    assert not job.tool.is_begun(queue="round-99", places=job.pushed.places)


def test_a_project_that_somebody_has_deleted_is_made_anew(job: Job) -> None:
    assert job.running.client.delete(f"/api/projects/{job.project}/").status_code == 204
    assert not job.tool.is_begun(queue=QUEUE, places=job.pushed.places)
    assert job.tool.retire(queue=QUEUE, places=job.pushed.places) == 0
    with pytest.raises(ServerError, match=r"no project .* Push the queue first"):
        job.pull()
    again = job.tool.push(job.folder, places=job.pushed.places)
    assert again.places != job.pushed.places
    assert again.created == len(job.images)


def test_a_personal_access_token_works_and_is_renewed(job: Job) -> None:
    token = job.running.post("/api/token/", {})["token"]
    name = "test_a_personal_access_token_works_and_is_renewed"
    tool = LabelStudioServer(job.running.url, token, project=name, project_id=name)
    assert tool.push(job.folder, places=job.pushed.places).unchanged == len(job.images)
    tool._api._http._authorization = "Bearer a.b.c"  # pyright: ignore[reportPrivateUsage]
    assert not tool.is_begun(queue=QUEUE, places=job.pushed.places)


@pytest.mark.parametrize(
    ("token", "message"),
    [("wrong", "refuses the token: Invalid token"), ("a.b.c", "refuses the token: Token is invalid")],
)
def test_a_wrong_token_is_said_to_be_one(job: Job, token: str, message: str) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        LabelStudioServer(job.running.url, token, project="x", project_id="x").push(job.folder, places=[])
    assert "Account & Settings" in caught.value.remedy


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def logged_in(browser: Any, server: RunningLabelStudio) -> Any:
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(30_000)
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(f"{server.url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_function("!location.pathname.startsWith('/user/login')")
    return page


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("SEGCURATE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"label-studio-{name}.png")


@pytest.mark.parametrize("masks", ["bitmask", "brush"])
def test_a_person_sees_the_proposal_and_where_to_look_corrects_it_and_submits(
    server: RunningLabelStudio, browser: Any, tmp_path: Path, masks: Any
) -> None:
    made = make_job(server, tmp_path, name=f"seen {masks}", masks=masks)
    page = logged_in(browser, server)
    page.goto(made.pushed.page)
    page.get_by_text("round-03, rank 1: left/frame 1.png").first.wait_for()
    keep(page, f"tasks-{masks}")
    words = page.locator("body").inner_text()
    places = [words.index(f"rank {image.rank}: {image.uri.split('/')[0]}") for image in made.images]
    assert places == sorted(places)
    page.goto(f"{made.pushed.page}?labeling=1")
    page.get_by_text("round-03, rank 1: left/frame 1.png").first.wait_for()
    regions = page.locator("text=look here >> visible=true")
    regions.first.wait_for()
    assert regions.count() == 2
    page.wait_for_timeout(2500)
    shown = page.locator("body").inner_text()
    assert 'entropy 1.00; "mostly" <b>pole</b>, a boundary' in shown
    assert "sky & <cloud>" in shown
    keep(page, f"task-{masks}")
    assert _colors(page) > 3  # the masks lie over the image
    _paint(page, select=None if masks == "brush" else "quoted")
    keep(page, f"painted-{masks}")
    page.get_by_role("button", name="Submit").first.click()
    page.get_by_text("round-03, rank 3").first.wait_for()
    page.close()
    (answer,) = made.pull()[0]
    image = made.images[0]
    painted = answer.read(image.width, image.height)
    changed = painted.mask != image.mask
    # class 2 by its key; with bitmasks its region is chosen, because masks cover the image
    assert set(np.unique(painted.mask[changed])) == {1}
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 10
    assert columns.min() >= 5
    assert columns.max() <= 47
    assert rows.max() < 45
    assert painted.overlapping == 0


def _paint(page: Any, *, select: str | None) -> None:
    """A stroke of the second class through the left of the image, a third from above."""
    if select is None:
        page.keyboard.press("2")
    else:
        page.get_by_text(select).last.click()
    page.wait_for_timeout(500)
    box = page.locator("canvas").nth(1).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.3
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(8):
        page.mouse.move(x + 6 * step, y + step)
        page.wait_for_timeout(30)
    page.mouse.up()
    page.wait_for_timeout(800)


def _colors(page: Any) -> int:
    """How many different colours, coarsely, the layers over the image have."""
    return page.evaluate(
        """() => {
            const seen = new Set();
            for (const canvas of document.querySelectorAll('canvas')) {
                if (!canvas.width || !canvas.height) continue;
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                for (let i = 0; i < data.length; i += 400)
                    if (data[i + 3]) seen.add([data[i] >> 6, data[i + 1] >> 6, data[i + 2] >> 6].join());
            }
            return seen.size;
        }"""
    )

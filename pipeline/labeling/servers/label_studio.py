"""A Label Studio server: a queue's tasks are pushed into one project, and finished work is pulled from it.

All queues of a segcurate project are in one project of the server, whose description has the segcurate
project's name and id. A project with the id of another one is never used, even where both have one name.
A task's data has its queue and image: a push finds the images that are on the server already by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from pipeline.errors import DataError
from pipeline.files import open_plain, read_plain, writing
from pipeline.labeling.exchange import shown
from pipeline.labeling.label_studio.config import Masks, masks_of, with_masks
from pipeline.labeling.label_studio.tasks import (
    CONFIG,
    INSTRUCTIONS,
    TASKS,
    model_version,
    with_masks_as,
)
from pipeline.labeling.servers.base import Pulled, Pushed, ServerError
from pipeline.labeling.servers.label_studio_api import LabelStudioApi, ServerProject, condition
from pipeline.labeling.servers.label_studio_http import GoneError, LabelStudioHttp, UnansweredError
from pipeline.labeling.servers.label_studio_images import image_urls
from pipeline.labeling.servers.limits import MOST_BYTES
from pipeline.labeling.untrusted.json_items import iter_items, load_item

Sampling = Literal["Sequential sampling", "Uncertainty sampling"]

FIRST_WITH_BITMASKS = (1, 21)
"""The first version of Label Studio that supports masks that are exact to the pixel."""
CHUNK_BYTES = 16 << 20
"""Bytes of tasks in a request; servers accept 200 MB."""
CHUNK_TASKS = 200
PASSES = 3
"""Attempts of a push to send the missing images, where the server does not answer."""

_LONGEST_TASK = 256 << 20
_PULLED_AT_ONCE = 4
_DELETED_AT_ONCE = 200
_LONGEST_TITLE = 50
_NAME, _ID = "segcurate project: ", "segcurate id: "
"""The beginnings of the lines in a project's description with the segcurate project's name and id."""


class LabelStudioServer:
    """A `LabelingServer`.

    Args:
        url: of the server.
        token: a personal access token, or a legacy one.
        project: the segcurate project's name.
        project_id: its id.
        images: how annotators' browsers get images: `upload` sends them to the server, `local` names them
            below the server's document root, and anything else is a prefix of an image's URI, such as
            `https://frames.example.org/` or `s3://bucket/`. With a prefix, overlays are uploaded, too.
        masks: `auto` means bitmasks where the server supports them.
        sampling: the order in which the server hands out tasks. Both begin with the best rank; the second
            also if the project has several queues.
        document_root: of the server, for `local`; the exported folder has the same path on the server.
        timeout: seconds to wait for an answer.
        transport: of the requests, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project: str,
        project_id: str,
        images: str = "upload",
        masks: Masks | Literal["auto"] = "auto",
        sampling: Sampling = "Sequential sampling",
        document_root: Path | None = None,
        timeout: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        http = LabelStudioHttp(url, token, timeout=timeout, transport=transport)
        self._api = LabelStudioApi(http)
        self.url = http.url
        self._project = project
        self._project_id = project_id
        self._images = images
        self._masks: Masks | Literal["auto"] = masks
        self._sampling: Sampling = sampling
        self._document_root = document_root

    def push(self, folder: Path, *, places: Sequence[str] = ()) -> Pushed:
        """As `LabelingServer.push`; a place is a project's number.

        Raises:
            ServerError: the server cannot be reached, or rejects a request.
            DataError: the folder is no export for Label Studio.
        """
        config, queue = _read_config(folder), str(next(_read_tasks(folder))["data"]["queue"])
        new = self._api.version() >= FIRST_WITH_BITMASKS
        wanted: Masks = self._masks if self._masks != "auto" else "bitmask" if new else "brush"
        before: set[object] | None = None
        for attempt in range(1, PASSES + 1):
            try:
                project = self._open(places, folder, config, masks=wanted)
                there: set[object] = {data.get("image_id") for data in self._task_data(project.id, queue)}
                before = there if before is None else before
                images = self._send_missing(project, folder, there)
                self._follow_newest(project)
            except UnansweredError:
                if attempt == PASSES:
                    raise
            else:
                unchanged = sum(image in before for image in images)
                return Pushed(
                    places=[str(project.id)],
                    created=len(images) - unchanged,
                    unchanged=unchanged,
                    page=f"{self.url}/projects/{project.id}/data",
                )
        raise AssertionError("the last pass returns or raises")

    def pull(
        self, *, queue: str, places: Sequence[str] = (), into: Path, since: datetime | None = None
    ) -> Pulled:
        """As `LabelingServer.pull`: a line for each annotation, in a file for each project.

        Raises:
            ServerError: the server cannot be reached, or no longer has a project of this segcurate project.
            UserError: the folder cannot be written.
        """
        projects = self._projects(places)
        if not projects:
            raise self._without_project(places)
        host = (urlsplit(self.url).hostname or "").replace(":", "_")
        emails = self._api.emails()
        with writing(into / "a file"):
            into.mkdir(parents=True, exist_ok=True)
        files: list[Path] = []
        newest: datetime | None = None
        written = 0
        for project in projects:
            path = into / f"label-studio-{host}-{project}.jsonl"
            with writing(path), path.open("w", encoding="utf-8") as stream:
                for line, changed in self._finished(project, queue, emails, since):
                    written += stream.write(line + "\n")
                    if written > MOST_BYTES:
                        raise ServerError(
                            f"{self.url} has sent labels of more than {MOST_BYTES / 2**30:.3g} GiB.",
                            "Check the address, and the server's log.",
                        )
                    newest = changed if newest is None else max(newest, changed)
            if path.stat().st_size:
                files.append(path)
            else:
                path.unlink()
        return Pulled(files=files, newest=newest)

    def is_begun(self, *, queue: str, places: Sequence[str] = ()) -> bool:
        """As `LabelingServer.is_begun`; a skipped task counts, too."""
        return any(begun for project in self._projects(places) for _, begun in self._tasks(project, queue))

    def retire(self, *, queue: str, places: Sequence[str] = ()) -> int:
        """As `LabelingServer.retire`. Uploaded files stay: another queue may show them."""
        retired = 0
        for project in self._projects(places):
            ids = [task for task, begun in self._tasks(project, queue) if not begun]
            for start in range(0, len(ids), _DELETED_AT_ONCE):
                self._api.delete_tasks(project, ids[start : start + _DELETED_AT_ONCE])
            retired += len(ids)
        return retired

    def _open(self, places: Sequence[str], folder: Path, config: str, *, masks: Masks) -> ServerProject:
        """The project, created if it does not exist, with the right configuration, sampling and id."""
        found = self._find(places, folder)
        if found is None:
            return self._api.make_project(
                title=_title(self._project),
                description=f"Queues of segcurate.\n{_marker(self._project)}\n{_ID}{self._project_id}",
                label_config=with_masks(config, masks),
                expert_instruction="<br>".join(INSTRUCTIONS),
                sampling=self._sampling,
                show_collab_predictions=True,
            )
        # masks of another kind cannot be edited: a project keeps its first kind
        kept = masks_of(found.label_config or "") if self._masks == "auto" else None
        changes: dict[str, str] = {}
        if (found.label_config or "").strip() != (wanted := with_masks(config, kept or masks).strip()):
            changes["label_config"] = wanted
        if found.sampling != self._sampling:
            changes["sampling"] = self._sampling
        if not _owners(found):  # made before projects had an id
            changes["description"] = f"{found.description or ''}\n{_ID}{self._project_id}".strip()
        return self._api.change_project(found.id, **changes) if changes else found

    def _find(self, places: Sequence[str], folder: Path) -> ServerProject | None:
        """The newest known project; else the one with this id; else one with this name, without an id, and
        with tasks of the queue in this folder."""
        known = next(self._known(reversed(places)), None)
        if known is not None:
            return known
        named: list[int] = []
        for project in self._api.projects():
            if self._project_id in _owners(project):
                return self._api.project(project.id)
            if not _owners(project) and _marker(self._project) in (project.description or "").splitlines():
                named.append(project.id)
        return next((self._api.project(one) for one in named if self._has_only_tasks_of(folder, one)), None)

    def _known(self, places: Iterable[str]) -> Iterator[ServerProject]:
        """The projects of these numbers that exist, and have no other id than this one."""
        for project in self._existing(places):
            if not (owners := _owners(project)) or self._project_id in owners:
                yield project

    def _existing(self, places: Iterable[str]) -> Iterator[ServerProject]:
        for place in places:
            if place.isdecimal():
                with suppress(GoneError):
                    yield self._api.project(place)

    def _projects(self, places: Sequence[str]) -> list[int]:
        """The numbers of the known projects, or else of those with this id."""
        known = [project.id for project in self._known(places)]
        return known or [one.id for one in self._api.projects() if self._project_id in _owners(one)]

    def _without_project(self, places: Sequence[str]) -> ServerError:
        ours = f"{self._project!r} (id {self._project_id[:8]})"
        for project in self._existing(places):
            for owner in _owners(project):
                lines = (project.description or "").splitlines()
                name = next((line.removeprefix(_NAME) for line in lines if line.startswith(_NAME)), "?")
                return ServerError(
                    f"Project {project.id} of {self.url} belongs to the segcurate project {shown(name)!r} "
                    f"(id {owner[:8]}), and this is {ours}.",
                    "Push the queue again: it gets a project of its own.",
                )
        return ServerError(f"{self.url} has no project of {ours}.", "Push the queue first.")

    def _send_missing(self, project: ServerProject, folder: Path, there: set[object]) -> list[int]:
        """Create the tasks of images without one, in the order of their ranks; return all images' ids."""
        with_urls = image_urls(
            self._api, project.id, folder, images=self._images, document_root=self._document_root
        )
        masks = masks_of(project.label_config or "") or "brush"
        ids: list[int] = []
        chunk: list[bytes] = []
        for task in _read_tasks(folder):
            ids.append(task["data"]["image_id"])
            if ids[-1] in there:
                continue
            task["data"] = with_urls(task["data"])
            for prediction in task["predictions"]:
                prediction["result"] = with_masks_as(prediction["result"], masks)
            chunk.append(json.dumps(task, ensure_ascii=False, separators=(",", ":")).encode())
            if len(chunk) == CHUNK_TASKS or sum(map(len, chunk)) > CHUNK_BYTES:
                self._api.add_tasks(project.id, chunk)
                chunk = []
        if chunk:
            self._api.add_tasks(project.id, chunk)
        return ids

    def _task_data(self, project: int, queue: str) -> list[dict[str, Any]]:
        """The data of a queue's tasks."""
        tasks = self._api.tasks(project, filters=[_of_queue(queue)], include="id,data")
        return [task.data for task in tasks if task.data.get("queue") == queue]

    def _has_only_tasks_of(self, folder: Path, project: int) -> bool:
        """Whether a project has tasks of the queue in this folder, and all are of images with its content."""
        ours = [task["data"] for task in _read_tasks(folder)]
        there = self._task_data(project, str(ours[0]["queue"]))
        contents = {data["image_id"]: data.get("sha256") for data in ours}
        return bool(there) and all(
            data.get("image_id") in contents and data.get("sha256") == contents[data["image_id"]]
            for data in there
        )

    def _follow_newest(self, project: ServerProject) -> None:
        """Make the project show, and sample by, the predictions of the queue that was pushed last."""
        newest = self._api.newest_task(project.id)
        queue, model = (None if newest is None else newest.data.get(key) for key in ("queue", "model"))
        if isinstance(queue, str) and isinstance(model, str):
            version = model_version(queue, model)
            if project.model_version != version:
                self._api.change_project(project.id, model_version=version)

    def _tasks(self, project: int, queue: str) -> Iterator[tuple[int, bool]]:
        """The tasks of a queue, and whether an annotator has begun each."""
        filters = [_of_queue(queue)]
        wanted = "id,total_annotations,cancelled_annotations,draft_exists"
        for task in self._api.tasks(project, filters=filters, fields="all", include=wanted):
            yield task.id, task.begun

    def _finished(
        self, project: int, queue: str, emails: Mapping[int, str], since: datetime | None
    ) -> Iterator[tuple[str, datetime]]:
        """Annotations of a queue as lines of a file, and the time of each one's last change."""
        filters = [_of_queue(queue)]
        if since is not None:
            # a task changes with its annotations
            moment = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            filters.append(condition("updated_at", "greater_or_equal", moment, kind="Datetime"))
        omitted = "drafts,annotations_results,predictions_results"
        tasks = self._api.tasks(
            project, filters=filters, page_size=_PULLED_AT_ONCE, fields="all", omit=omitted
        )
        for task in tasks:
            data = {key: task.data.get(key) for key in ("image_id", "queue", "sha256")}
            proposals = [{"result": prediction.get("result")} for prediction in task.predictions]
            for annotation in task.annotations if data["queue"] == queue else ():
                changed = annotation.updated_at
                if since is not None and changed < since:
                    continue
                written = annotation.model_dump(mode="json")
                if (person := annotation.completed_by) is not None and person in emails:
                    written["completed_by"] = {"id": person, "email": emails[person]}
                line = {"id": task.id, "annotations": [written], "predictions": proposals, "data": data}
                yield json.dumps(line, ensure_ascii=False), changed


def _of_queue(queue: str) -> dict[str, Any]:
    return condition("data.queue", "equal", queue)


def _marker(project: str) -> str:
    """The line of a description that names the segcurate project of the queues."""
    return f"{_NAME}{shown(project)}"


def _owners(project: ServerProject) -> list[str]:
    """The ids of segcurate projects in a description: none where it was made before they had one."""
    lines = (line.strip() for line in (project.description or "").splitlines())
    return [line.removeprefix(_ID) for line in lines if line.startswith(_ID)]


def _title(project: str) -> str:
    """A title for the project; Label Studio accepts 3 to 50 characters."""
    plain = shown(project)
    return (plain if len(plain) >= 3 else f"segcurate {plain}")[:_LONGEST_TITLE]


def _read_config(folder: Path) -> str:
    try:
        return read_plain(folder / CONFIG).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder} is no export for Label Studio.", "Export the queue with `--to label-studio`."
        ) from error


def _read_tasks(folder: Path) -> Iterator[dict[str, Any]]:
    """The tasks of an export; there is at least one."""
    path = folder / TASKS
    found = False
    with open_plain(path) as stream:
        for item in iter_items(stream, longest=_LONGEST_TASK):
            found = True
            task = None if item.content is None else load_item(item.content)
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise DataError(f"{path} is damaged.", "Export the queue again.")
            yield task
    if not found:
        raise DataError(f"{path} holds no tasks.", "Export the queue again.")

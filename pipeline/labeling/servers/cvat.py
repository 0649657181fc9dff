"""A CVAT server: a queue is pushed as tasks of so many images each, finished tasks are pulled.

CVAT hands images out in the order of their task, and has no other setting for an order. A push finds the
images that are on the server already by the tasks' names and images. A name has the start of the segcurate
project's id: tasks with the id of another project are never used, even where both have one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from cvat_sdk.core.proxies.tasks import Task

from pipeline.labeling.servers.base import Pulled, Pushed
from pipeline.labeling.servers.cvat_client import CvatConnection, connected
from pipeline.labeling.servers.cvat_export import ExportedQueue

_LONGEST_NAME = 230
_ID_LETTERS = 8
_NUMBER = r" \([0-9]+/[0-9]+\)"
_OWNED = re.compile(rf".* \[([0-9a-f]{{{_ID_LETTERS}}})\]{_NUMBER}", re.DOTALL)


class CvatServer:
    """A `LabelingServer`.

    Args:
        url: of the server.
        token: a personal access token, or `user:password`.
        project: the segcurate project's name, with which the names of tasks begin.
        project_id: its id, the start of which is in the names of tasks.
        batch: images of a task.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        project: str,
        project_id: str,
        batch: int = 100,
        timeout: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._project = project
        self._id = project_id[:_ID_LETTERS]
        self._batch = batch
        self._timeout = timeout

    def push(self, folder: Path, *, places: Sequence[str]) -> Pushed:
        """Make tasks of the images that are not in any. A task without images is left from a push that was
        killed, and is removed. A task without annotations gets proposals, unless an annotator has begun it.

        Raises:
            DataError: the folder is no queue that was exported for CVAT.
            ServerError: as `LabelingServer`.
        """
        queue = ExportedQueue.of(folder)
        with self._connected() as server:
            there: dict[int, list[str]] = {}
            for task in self._tasks(server, queue, places):
                frames = server.frames(task) if task.size else []
                if not task.size:
                    if self._has_id(task):
                        server.remove(task)
                elif queue.images.keys() >= set(frames):
                    self._annotate(server, task, queue, frames)
                    there[task.id] = frames
            lying = {name for frames in there.values() for name in frames}
            missing = [name for name in queue.images if name not in lying]
            parts = [missing[at : at + self._batch] for at in range(0, len(missing), self._batch)]
            total = len(there) + len(parts)
            for number, names in enumerate(parts, start=len(there) + 1):
                name = f"{self._name(queue.name)} ({number}/{total})"
                with queue.staged(names) as files:
                    task = server.create_task(name, queue.labels, files)
                self._annotate(server, task, queue, names)
                there[task.id] = names
        page = f"{self.url}/tasks/{next(iter(there))}" if len(there) == 1 else f"{self.url}/tasks"
        return Pushed(
            places=[str(identifier) for identifier in sorted(there)],
            created=len(missing),
            unchanged=len(queue.images) - len(missing),
            page=page,
        )

    def pull(self, *, queue: str, places: Sequence[str], into: Path, since: datetime | None = None) -> Pulled:
        """Fetch each task whose jobs are all completed, as an archive."""
        files: list[Path] = []
        newest: datetime | None = None
        with self._connected() as server:
            for task in self._of_places(server, places):
                jobs = server.jobs(task)
                if not jobs or not all(str(job.state) == "completed" for job in jobs):
                    continue
                changed = max(map(_aware, (task.updated_date, *(job.updated_date for job in jobs))))
                if since is not None and changed < since:
                    continue
                files.append(into / f"task_{task.id}.zip")
                server.export(task, files[-1])
                newest = changed if newest is None else max(newest, changed)
        return Pulled(files=files, newest=newest)

    def is_begun(self, *, queue: str, places: Sequence[str]) -> bool:
        """Whether an annotator has opened a job of these tasks, or drawn a shape."""
        with self._connected() as server:
            return any(server.is_begun(task) for task in self._of_places(server, places))

    def retire(self, *, queue: str, places: Sequence[str]) -> int:
        """Remove the tasks with names of this queue that no annotator has begun; returns how many images they
        had."""
        removed = 0
        with self._connected() as server:
            for task in self._of_places(server, places):
                if self._is_named_after(task, queue) and not server.is_begun(task):
                    server.remove(task)
                    removed += task.size or 0
        return removed

    def _connected(self) -> AbstractContextManager[CvatConnection]:
        return connected(self.url, self._token, timeout=self._timeout)

    def _name(self, queue: str) -> str:
        ending = f" {queue} [{self._id}]"
        return self._project[: _LONGEST_NAME - len(ending)] + ending

    def _former_name(self, queue: str) -> str:
        """The beginning of the names of tasks that were made before projects had an id."""
        return f"{self._project} {queue}"[:_LONGEST_NAME]

    def _has_id(self, task: Task) -> bool:
        owner = _OWNED.fullmatch(task.name)
        return owner is not None and owner[1] == self._id

    def _is_named_after(self, task: Task, queue: str) -> bool:
        """Whether a task has the name that a push gives it, also where the project had another name then."""
        ours, former = re.escape(f" {queue} [{self._id}]"), re.escape(self._former_name(queue))
        return re.fullmatch(f"(.*{ours}|{former}){_NUMBER}", task.name, re.DOTALL) is not None

    def _tasks(self, server: CvatConnection, queue: ExportedQueue, places: Sequence[str]) -> list[Task]:
        """The tasks that may belong to the queue, oldest first: of the known places, and of its names."""
        named = [
            task
            for part in (f"{queue.name} [{self._id}]", self._former_name(queue.name))
            for task in server.tasks_named(part)
            if self._is_named_after(task, queue.name)
        ]
        found = {task.id: task for task in (*self._of_places(server, places), *named)}
        return [found[identifier] for identifier in sorted(found)]

    def _of_places(self, server: CvatConnection, places: Sequence[str]) -> list[Task]:
        """The tasks of these places that still exist, without those that have the id of another project."""
        tasks = (server.task(int(place)) for place in places if place.isdecimal())
        return [
            task
            for task in tasks
            if task is not None and (self._has_id(task) or _OWNED.fullmatch(task.name) is None)
        ]

    def _annotate(
        self, server: CvatConnection, task: Task, queue: ExportedQueue, names: Sequence[str]
    ) -> None:
        """Send the proposals for a task's images, unless it has annotations or an annotator has begun it."""
        if server.has_annotations(task) or server.is_begun(task):
            return
        with queue.annotations(names) as document:
            server.annotate(task, document)


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

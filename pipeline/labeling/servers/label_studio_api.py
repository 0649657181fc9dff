"""The part of Label Studio's HTTP API that queues need. Every response is validated."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.labeling.exchange import shown
from pipeline.labeling.servers.base import ServerError
from pipeline.labeling.servers.label_studio_http import PAUSES, GoneError, LabelStudioHttp

PAGE = 100
"""Tasks or projects of an answer."""
MOST_ANNOTATIONS = 1000
"""Annotations of a task."""
_IMPORT_LOOKS = 1200
_Model = TypeVar("_Model", bound=BaseModel)


class ServerAnnotation(BaseModel):
    """An annotation; other members stay as they are."""

    model_config = ConfigDict(extra="allow")

    updated_at: AwareDatetime
    completed_by: int | None = None


class ServerTask(BaseModel):
    """A task, with the requested members."""

    id: Annotated[int, Field(ge=1)]
    data: dict[str, Any] = {}
    annotations: Annotated[list[ServerAnnotation], Field(max_length=MOST_ANNOTATIONS)] = []
    predictions: list[dict[str, Any]] = []
    total_annotations: int | None = None
    cancelled_annotations: int | None = None
    draft_exists: bool | None = None

    @property
    def begun(self) -> bool:
        """Whether an annotator has annotated or skipped it, or has a draft of it."""
        return bool(self.total_annotations or self.cancelled_annotations or self.draft_exists)


class ServerProject(BaseModel):
    """A project."""

    id: Annotated[int, Field(ge=1)]
    description: str | None = None
    label_config: str | None = None
    sampling: str | None = None
    model_version: str | None = None


class _Tasks(BaseModel):
    tasks: Annotated[list[ServerTask], Field(max_length=PAGE)]


class _Projects(BaseModel):
    results: Annotated[list[ServerProject], Field(max_length=PAGE)]
    next: str | None = None


class _Upload(BaseModel):
    file: Annotated[str, Field(pattern=r"^[^?#]+$")]


class _Uploaded(BaseModel):
    file_upload_ids: Annotated[list[int], Field(min_length=1)]


class _User(BaseModel):
    id: int
    email: str = ""


class _Storage(BaseModel):
    path: str | None = None


class _Import(BaseModel):
    """The response of an edition that imports in the background."""

    id: Annotated[int, Field(alias="import")]


class _ImportState(BaseModel):
    status: str
    error: str | None = None


class _Version(BaseModel):
    release: Annotated[str, Field(pattern=r"^\d+\.\d+")]


class LabelStudioApi:
    """The requests to a server. Every method raises a ServerError where a request fails."""

    def __init__(self, http: LabelStudioHttp) -> None:
        self._http = http

    def version(self) -> tuple[int, int]:
        """Such as (1, 23).

        Raises:
            ServerError: it is no Label Studio.
        """
        try:
            answer = self._http.send("GET", "/api/version", authorized=False)
        except GoneError as error:
            raise self._http.another_server() from error
        major, minor, *_ = re.split(r"\D+", self._parsed(_Version, answer).release)
        return int(major), int(minor)

    def project(self, id: int | str) -> ServerProject:
        """A project.

        Raises:
            GoneError: the server has no project of this number.
        """
        return self._parsed(ServerProject, self._http.send("GET", f"/api/projects/{id}/"))

    def projects(self) -> Iterator[ServerProject]:
        """The ids and descriptions of all projects that the token's owner sees."""
        page = 1
        while True:
            params = {"page": page, "page_size": PAGE, "include": "id,description"}
            answer = self._parsed(_Projects, self._http.send("GET", "/api/projects/", params=params))
            yield from answer.results
            if answer.next is None:
                return
            page += 1

    def make_project(self, **members: Any) -> ServerProject:
        """Create a project."""
        made = self._http.send("POST", "/api/projects/", body=members, repeatable=False)
        return self._parsed(ServerProject, made)

    def change_project(self, id: int, **members: Any) -> ServerProject:
        """Change some of a project's settings."""
        return self._parsed(ServerProject, self._http.send("PATCH", f"/api/projects/{id}/", body=members))

    def add_tasks(self, project: int, tasks: Sequence[bytes]) -> None:
        """Create tasks, given as JSON; wait for an edition that does so in the background."""
        body = b"[" + b",".join(tasks) + b"]"
        answer = self._http.send("POST", f"/api/projects/{project}/import", body=body, repeatable=False)
        if not isinstance(answer, dict) or "import" not in answer:
            return
        path = f"/api/projects/{project}/imports/{self._parsed(_Import, answer).id}/"
        for _ in range(_IMPORT_LOOKS):
            state = self._parsed(_ImportState, self._http.send("GET", path))
            if state.status == "completed":
                return
            if state.status == "failed":
                raise ServerError(
                    f"{self._http.url} has failed to import tasks: {shown(state.error)}.", "See its log."
                )
            time.sleep(PAUSES[0])
        raise self._http.unanswered()

    def delete_tasks(self, project: int, ids: Sequence[int]) -> None:
        """Delete tasks with their annotations and predictions."""
        params = {"id": "delete_tasks", "project": project}
        body = {"selectedItems": {"all": False, "included": list(ids)}}
        self._http.send("POST", "/api/dm/actions/", params=params, body=body)

    def uploads(self, project: int) -> list[str]:
        """The paths of the files that the token's owner has sent to a project."""
        answer = self._http.send("GET", f"/api/projects/{project}/file-uploads", params={"all": "true"})
        return [upload.file for upload in self._parsed_list(_Upload, answer)]

    def upload(self, project: int, name: str, content: bytes) -> str:
        """Send a file to a project without making a task of it; return its path on the server."""
        answer = self._http.send(
            "POST",
            f"/api/projects/{project}/import",
            params={"commit_to_project": "false"},
            files={"file": (name, content)},
        )
        (id, *_) = self._parsed(_Uploaded, answer).file_upload_ids
        return self._parsed(_Upload, self._http.send("GET", f"/api/import/file-upload/{id}")).file

    def local_storages(self, project: int) -> list[str | None]:
        """The folders whose files a project's annotators may see."""
        answer = self._http.send("GET", "/api/storages/localfiles/", params={"project": project})
        return [storage.path for storage in self._parsed_list(_Storage, answer)]

    def add_local_storage(self, project: int, path: Path) -> None:
        """Let a project's annotators see the files below a folder of the server."""
        body = {"project": project, "path": str(path), "title": path.name, "use_blob_urls": True}
        self._http.send("POST", "/api/storages/localfiles/", body=body)

    def emails(self) -> dict[int, str]:
        """Users' email addresses by number; empty where the token's owner may not see them."""
        try:
            answer = self._http.send("GET", "/api/users/")
        except ServerError:
            return {}
        return {user.id: user.email for user in self._parsed_list(_User, answer) if user.email}

    def tasks(
        self,
        project: int,
        *,
        filters: Sequence[Mapping[str, Any]] = (),
        page_size: int = PAGE,
        **params: Any,
    ) -> Iterator[ServerTask]:
        """Tasks of a project in the order of their ids, a page at a time.

        Each page begins after the last id of the page before, so that tasks which are created or deleted
        meanwhile move no other task to another page.

        Args:
            filters: of Label Studio's data manager; a task must match all of them.
        """
        last = 0
        while True:
            after = condition("id", "greater", last, kind="Number")
            query = {
                "ordering": ["tasks:id"],
                "filters": {"conjunction": "and", "items": [*filters, after]},
            }
            asked = {"project": project, "page_size": page_size, "query": json.dumps(query), **params}
            tasks = self._parsed(_Tasks, self._http.send("GET", "/api/tasks/", params=asked)).tasks
            for task in tasks:
                if task.id <= last:
                    raise self._http.another_server()
                last = task.id
                yield task
            if not tasks:
                return

    def newest_task(self, project: int) -> ServerTask | None:
        """The newest task of a project."""
        query = json.dumps({"ordering": ["-tasks:id"]})
        params = {"project": project, "page_size": 1, "query": query, "include": "id,data"}
        tasks = self._parsed(_Tasks, self._http.send("GET", "/api/tasks/", params=params)).tasks
        return tasks[0] if tasks else None

    def _parsed(self, model: type[_Model], answer: object) -> _Model:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise self._http.another_server() from error

    def _parsed_list(self, model: type[_Model], answer: object) -> list[_Model]:
        """The items of a list, which some servers send in pages."""
        rows = answer.get("results") if isinstance(answer, dict) else answer
        if not isinstance(rows, list):
            raise self._http.another_server()
        return [self._parsed(model, row) for row in rows]


def condition(column: str, operator: str, value: object, *, kind: str = "String") -> dict[str, Any]:
    """A filter of Label Studio's data manager."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}

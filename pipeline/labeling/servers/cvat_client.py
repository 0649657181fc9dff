"""The connection to a CVAT server: CVAT's own client, with time limits, and with ServerErrors."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, cast

import urllib3
from cvat_sdk.api_client.exceptions import ApiException, NotFoundException, OpenApiException
from cvat_sdk.core.client import AccessTokenCredentials, Client, Config, PasswordCredentials
from cvat_sdk.core.exceptions import BackgroundRequestException, CvatSdkException
from cvat_sdk.core.proxies.tasks import Task
from pydantic import BaseModel, Field

from pipeline.errors import DataError
from pipeline.files import writing
from pipeline.labeling.exchange import shown
from pipeline.labeling.servers.base import ServerError, another_server, check_token, check_url
from pipeline.labeling.servers.cvat_http import CvatHttp
from pipeline.labeling.servers.limits import UNAVAILABLE
from pipeline.labeling.untrusted.json_items import iter_items, load_item

TOOL = "CVAT"
POLL_SECONDS = 2.0
"""Seconds between two requests for the state of the server's work."""
MOST_PAGES = 1000
"""Pages of a list of tasks or jobs."""
UPLOADED, EXPORTED = "CVAT 1.1", "CVAT for images 1.1"
"""CVAT's names of its own format, for uploads and for exports."""

_LONGEST_SHAPE = 64 << 20
_PAGE = 100
_TOKEN_REMEDY = "Create an access token in CVAT's profile page, and put it into CVAT_ACCESS_TOKEN."
_BY_PEOPLE = ("manual", "semi-auto")


@contextmanager
def connected(url: str, token: str, *, timeout: float) -> Generator[CvatConnection]:
    """A connection to a server, until the block ends.

    Args:
        token: a personal access token, or `user:password`.
        timeout: seconds to wait for an answer.

    Raises:
        ServerError: also in the block: the server or the network has failed.
    """
    check_url(url, tool=TOOL)
    user, is_password, password = token.partition(":")
    credentials = PasswordCredentials(user, password) if is_password else AccessTokenCredentials(token)
    if not is_password:
        check_token(token, url=url, tool=TOOL, remedy=_TOKEN_REMEDY)
    with _server_errors(url):
        config = Config(status_check_period=POLL_SECONDS, verify_ssl=True)
        with Client(url, logger=_SILENT, config=config, check_server_version=False) as client:
            rest: Any = client.api_client.rest_client
            rest.pool_manager = http = CvatHttp(rest.pool_manager, url=url, timeout=timeout)
            client.login(credentials)
            yield CvatConnection(client, http)


class _BadAnswerError(Exception):
    """An answer that is not JSON."""


_Word = Annotated[str, Field(max_length=100)]


class CvatJob(BaseModel):
    """A job of a task."""

    type: _Word
    state: _Word
    stage: _Word
    updated_date: datetime


class _Listed(BaseModel):
    id: int
    name: Annotated[str, Field(max_length=1000)]


class _Frame(BaseModel):
    name: str


class _Meta(BaseModel):
    frames: list[_Frame] = []


class _Page(BaseModel):
    results: Annotated[list[Any], Field(max_length=_PAGE)]
    next: str | None = None


_Model = TypeVar("_Model", bound=BaseModel)


class CvatConnection:
    """The requests of a push and of a pull."""

    def __init__(self, client: Client, http: CvatHttp) -> None:
        self._client = client
        self._http = http

    def tasks_named(self, part: str) -> Iterator[Task]:
        """The tasks that have this in their names."""
        named = json.dumps({"in": [part, {"var": "name"}]})
        for listed in self._listed(_Listed, self._client.api_client.tasks_api.list_endpoint, filter=named):
            if part in listed.name and (task := self.task(listed.id)) is not None:
                yield task

    def task(self, identifier: int) -> Task | None:
        """The task of this number; None where it does not exist."""
        try:
            return self._client.tasks.retrieve(identifier)
        except NotFoundException:
            return None

    def frames(self, task: Task) -> list[str]:
        """The names of a task's images, in its order."""
        api = self._client.api_client.tasks_api
        return [
            frame.name for frame in self._answer(_Meta, api.retrieve_data_meta_endpoint, id=task.id).frames
        ]

    def jobs(self, task: Task) -> list[CvatJob]:
        """The annotation jobs of a task; it has none without data."""
        endpoint = self._client.api_client.jobs_api.list_endpoint
        return [job for job in self._listed(CvatJob, endpoint, task_id=task.id) if job.type == "annotation"]

    def sources(self, task: Task) -> Generator[str]:
        """The source of each annotation of a task, such as `manual` or `file`; read while it is sent."""
        _, response = self._client.api_client.tasks_api.retrieve_annotations(task.id, _parse_response=False)
        with response:
            try:
                for item in iter_items(cast(BinaryIO, response), longest=_LONGEST_SHAPE, members=True):
                    if item.key is None:
                        raise _BadAnswerError
                    if item.listed:
                        annotation = {} if item.content is None else load_item(item.content)
                        yield str(annotation.get("source", "")) if isinstance(annotation, dict) else ""
            except DataError as error:
                raise _BadAnswerError from error

    def has_annotations(self, task: Task) -> bool:
        """Whether a task has any annotation."""
        return next(self.sources(task), None) is not None

    def is_begun(self, task: Task) -> bool:
        """Whether an annotator has worked in a task: opened a job, or drawn a shape."""
        if any((str(job.state), str(job.stage)) != ("new", "annotation") for job in self.jobs(task)):
            return True
        return any(source in _BY_PEOPLE for source in self.sources(task))

    def create_task(self, name: str, labels: Sequence[dict[str, Any]], files: Sequence[Path]) -> Task:
        """Create a task with these images, in this order and unchanged."""
        task = self._client.tasks.create({"name": name, "labels": list(labels)})
        params = {"image_quality": 100, "sorting_method": "predefined"}
        task.upload_data(list(files), params=params)
        return task

    def annotate(self, task: Task, document: Path) -> None:
        """Replace the annotations of a task."""
        task.import_annotations(UPLOADED, document, conv_mask_to_poly=False)

    def export(self, task: Task, path: Path) -> None:
        """Fetch a task's annotations as CVAT's archive."""
        path.unlink(missing_ok=True)
        with writing(path):
            task.export_dataset(EXPORTED, path, include_images=False)

    def remove(self, task: Task) -> None:
        """Remove a task with its images and annotations."""
        task.remove()

    def _answer(self, model: type[_Model], endpoint: Any, **params: Any) -> _Model:
        """An answer, without the models of CVAT's client, which cost time for each object."""
        _, response = endpoint.call_with_http_info(_parse_response=False, **params)
        try:
            return model.model_validate(self._http.parsed(response))
        except DataError as error:
            raise _BadAnswerError from error

    def _listed(self, model: type[_Model], endpoint: Any, **filters: Any) -> Iterator[_Model]:
        """The objects of a list, a page at a time."""
        for number in range(1, MOST_PAGES + 1):
            page = self._answer(_Page, endpoint, page=number, page_size=_PAGE, **filters)
            for row in page.results:
                yield model.model_validate(row)
            if not page.next:
                return
        raise ServerError(
            f"{self._client.api_map.host} sends a list of more than {MOST_PAGES} pages.",
            "Check the address, and the server's log.",
        )


@contextmanager
def _server_errors(url: str) -> Generator[None]:
    """Raise the errors of CVAT's client as a ServerError. The token is in none of its messages."""
    again = "Run the command again; nothing is created twice."
    try:
        yield
    except BackgroundRequestException as error:
        raise ServerError(f"{url} could not carry out the request: {shown(error)}.", again) from error
    except ApiException as error:
        raise _refused(url, error) from error
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise ServerError(
            f"{url} cannot be reached, or does not answer in time: {shown(type(error).__name__)}.",
            "Check the address, and that CVAT runs there.",
        ) from error
    except (CvatSdkException, OpenApiException, _BadAnswerError) as error:
        raise another_server(url, tool=TOOL) from error
    except (AssertionError, LookupError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise another_server(url, tool=TOOL) from error  # CVAT's client trusts answers


def _refused(url: str, error: ApiException) -> ServerError:
    status = error.status or 0
    if status == 401:
        return ServerError(f"{url} does not accept the token.", _TOKEN_REMEDY)
    if status == 403:
        return ServerError(
            f"{url} does not allow this user to do that.", "Use the token of a user who may create tasks."
        )
    if status == 404:
        return ServerError(f"{url} has no such page.", "Check the address, and that it is CVAT's.")
    if status in UNAVAILABLE:
        return ServerError(f"{url} fails repeatedly.", "Run the command again later.")
    if status >= 500:
        return ServerError(f"{url} has failed (status {status}).", "Run the command again later.")
    if status == 0:
        return ServerError(
            f"{url} cannot be reached safely: {shown(error.reason)}.",
            "Check the address and its certificate.",
        )
    reason = shown(_text(error.body)).removesuffix(".")
    return ServerError(f"{url} refuses this (status {status}): {reason}.", "Correct what CVAT names.")


def _text(body: object) -> str:
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body or "it gives no reason")


_SILENT = logging.Logger("cvat", level=logging.CRITICAL + 1)

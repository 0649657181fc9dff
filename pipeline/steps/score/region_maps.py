"""Which region maps have changed since their images were scored.

JSON files in the project's `workdir` keep the version of each map that a run has read. A map whose size and
times are still the same is not read again; for any other one the content decides.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy.orm import Session

from db.queries.scores import scoring_times
from pipeline.data.project import Project
from pipeline.files import LARGEST_LIST, atomic_write_bytes, read_plain
from pipeline.processes import this_process
from pipeline.regions.sources import MapVersion, RegionFiles


def maps_folder(project: Project, run_id: int) -> Path:
    """The folder of the versions of a run's region maps."""
    return project.workdir / "region_maps" / str(run_id)


def record_maps(project: Project, run_id: int, versions: Mapping[int, MapVersion]) -> Path:
    """Write the versions of region maps, by image id, into a new file. The latest file counts for an image.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = maps_folder(project, run_id) / f"{time.time_ns()}-{this_process()}.json"
    atomic_write_bytes(path, json.dumps(versions).encode())
    return path


def changed_maps(session: Session, project: Project, source: RegionFiles, *, run_id: int) -> list[int]:
    """The ids of a run's images whose region maps have changed since they were scored.

    Without a recorded version, a map has changed if it is newer than the scores. What is not recorded yet is
    recorded, in one file with all other versions.
    """
    files = sorted(maps_folder(project, run_id).glob("*.json"))
    recorded: dict[int, MapVersion] = {}
    for file in files:
        with suppress(ValueError, TypeError, AttributeError):  # damaged: as if nothing were recorded
            versions = json.loads(read_plain(file, longest=LARGEST_LIST))
            recorded.update((int(image_id), MapVersion(*version)) for image_id, version in versions.items())
    changed: list[int] = []
    current: dict[int, MapVersion] = {}
    for image_id, uri, scored_at in scoring_times(session, run_id=run_id):
        path = source.path(project.image(uri))
        if not path.is_file():
            continue
        before = recorded.get(image_id)
        now = MapVersion.of(path, before)
        if before is not None and now.sha256 != before.sha256:
            changed.append(image_id)
            now = before  # until the new map is read
        elif before is None and now.mtime_ns > scored_at.timestamp() * 1e9:
            changed.append(image_id)
            continue
        current[image_id] = now
    if current != recorded or len(files) > 1:
        written = record_maps(project, run_id, current)
        for file in files:
            if file != written:
                file.unlink(missing_ok=True)
    return changed

"""What the values and colours of masks mean: ingest stores it, and steps that use masks later compare.

Labels are stored as class indices; the masks of held-out images are read from their files. After a change of
`data.classes`, the two would differ: so ingest reads all masks again, and until then no step uses them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db.queries import images as image_queries
from pipeline.config import DataConfig
from pipeline.data.project import Project
from pipeline.errors import ConfigError


def meaning_of_values(config: DataConfig) -> dict[str, Any]:
    """What decides which class a pixel of a mask has, as JSON, by keys of the configuration."""
    return {
        "ids of data.classes": [
            index if item.id is None else item.id for index, item in enumerate(config.classes)
        ],
        "colors of data.classes": [
            None if item.color is None else list(item.color) for item in config.classes
        ],
        "data.ignore_index": sorted(config.ignore_index),
        "data.ignore_color": sorted(map(list, config.ignore_color)),
        "data.mask_encoding": config.mask_encoding,
    }


def changed_meaning(session: Session, project: Project) -> str:
    """What has changed since the masks were read, with both values, as a sentence; empty where nothing has,
    or where it is not known."""
    row, now = image_queries.project_row(session), meaning_of_values(project.config.data)
    if row is None or row.mask_values is None or row.class_names != project.config.data.class_names:
        return ""  # ingest refuses other classes
    before = row.mask_values
    changes = [f"{key} from {before.get(key)} to {now[key]}" for key in now if before.get(key) != now[key]]
    return f"The meaning of mask values has changed: {'; '.join(changes)}." if changes else ""


def require_known_meaning(session: Session, project: Project) -> None:
    """Refuse to use masks that were read with another meaning.

    Raises:
        ConfigError: that is so.
    """
    changed = changed_meaning(session, project)
    if changed:
        raise ConfigError(changed, "Run `segcurate ingest`, which reads all masks again; or undo the change.")

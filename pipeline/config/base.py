"""The base class and types of every section of the configuration."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

IGNORE = 255
"""The class index of a pixel without a label, in every mask that segcurate writes."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


def _template(value: str) -> str:
    try:
        value.format(parent="a", stem="b", name="b.png")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("Expected only {parent}, {stem} and {name} in braces.") from error
    return value


PathTemplate = Annotated[str, AfterValidator(_template)]
"""The path of a file that belongs to an image, with `{parent}`, `{stem}` and `{name}` of the image."""


class Section(BaseModel):
    """A part of the configuration: frozen, with unknown keys as errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def content_hash(self) -> str:
        """SHA-256 of the section's canonical JSON, as 64 hex digits."""
        return content_hash(self.model_dump(mode="json"))


def content_hash(document: Any) -> str:
    """SHA-256 of a JSON document with sorted keys, as 64 hex digits.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()

"""The base class and types of every section of the configuration."""

from __future__ import annotations

import hashlib
import json
import os
from string import Formatter, Template
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

IGNORE = 255
"""The class index of a pixel without a label, in every mask that segcurate writes."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


def _template(value: str) -> str:
    try:
        fields = [part[1:] for part in Formatter().parse(value) if part[1] is not None]
    except ValueError:
        fields = [("", "", "")]
    if any(name not in ("parent", "stem", "name") or spec or conversion for name, spec, conversion in fields):
        raise ValueError(
            "Expected only {parent}, {stem} and {name} in braces. If the images' names end in something that "
            "the masks' names lack, such as _leftImg8bit, write `data.image_suffix: _leftImg8bit`."
        )
    return value


PathTemplate = Annotated[str, AfterValidator(_template)]
"""The path of a file that belongs to an image, with `{parent}`, `{stem}` and `{name}` of the image."""


def expanded(path: str) -> str:
    """A path with the home folder for a leading `~`, and with the values of `$NAME` and `${NAME}`; `$$` is a
    dollar sign.

    Raises:
        ValueError: a variable is not set, or there is no such home folder.
    """
    try:
        text = Template(path).substitute(os.environ)
    except KeyError as error:
        raise ValueError(
            f"The environment variable {error.args[0]} is not set; $$ is a dollar sign."
        ) from None
    except ValueError:
        raise ValueError("A $ begins the name of an environment variable; $$ is a dollar sign.") from None
    home = os.path.expanduser(text)
    if text.startswith("~") and home == text:
        raise ValueError(f"There is no home folder {text.partition('/')[0]}; ./~ is a file of that name.")
    return home


FilePath = Annotated[str, AfterValidator(expanded)]
"""A path of this machine or of an object store, in which `~` and environment variables are replaced."""


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

"""The base class and types of every section of the configuration."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import textwrap
from itertools import pairwise
from string import Formatter, Template
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

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


class Documented(BaseModel):
    """A model whose JSON schema explains each key by the text below it. Pydantic's own option would read the
    source of every section whenever a command starts."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(core_schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, text in _explanations(cls).items():
            if name in properties:
                properties[name]["description"] = text
        return found


def _explanations(section: type) -> dict[str, str]:
    """The text below each key of a class, by the key's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    if not isinstance(definition, ast.ClassDef):
        return {}
    found: dict[str, str] = {}
    for key, below in pairwise(definition.body):
        match key, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
            case _:
                pass
    return found


class Section(Documented):
    """A part of the configuration: frozen, with unknown keys as errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

"""The errors of a configuration as text for the user."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from pipeline.errors import ConfigError
from pipeline.files import read_plain

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_MOST_BRACKETS = 10_000
_NESTED = re.compile(r"(?:[-?] +){100}|[\[{]{100}")
_KEY = re.compile(r"[A-Za-z][\w-]{0,39}")


def read_yaml(path: Path, *, remedy: str) -> Any:
    """The value of a YAML file.

    Args:
        remedy: where the file cannot be read.

    Raises:
        ConfigError: there is no such file, it may not be read, or it is not YAML.
        DataError: it is no plain file, or too large.
    """
    try:
        text = read_plain(path).decode()
        if _NESTED.search(text) or text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise RecursionError  # which the parser finds out after minutes
        return yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {explain_yaml(error)}.", "Correct that line.") from None
    except ValueError:  # a date or a number that Python does not have
        raise ConfigError(
            f"{path} is not valid YAML: it has a date or a number that is none.", "Correct it."
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe types; a key that a mapping has twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, line) != line:
                name = f"`{key.value}`" if _KEY.fullmatch(key.value) else "a key"
                problem = f"{name} is there already, in line {first[key.value]}; join the two"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def explain_yaml(error: yaml.YAMLError | UnicodeDecodeError | RecursionError) -> str:
    """The problem and its place in the file, without the line itself, which may contain a password."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it cannot be read as text" if isinstance(error, UnicodeDecodeError) else "it cannot be read"
    mark = error.problem_mark
    problem = _QUOTED.sub("…", error.problem or error.context or "it cannot be read")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def explain(
    error: ValidationError,
    model: type[BaseModel],
    *,
    path: Path,
    prefix: str | None = None,
    nested: str = "__",
) -> str:
    """A heading, and a line for each problem; for an unknown key, with the nearest key that `model` has at
    that level.

    Args:
        path: the file of the settings.
        prefix: of the environment variables that override them, where they do; `nested` is between the keys
            of a name.
    """
    of_file: list[str] = []
    of_environment: list[str] = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        variable = _override(location, prefix=prefix, nested=nested) if prefix else None
        lines = of_file if variable is None else of_environment
        key = ".".join(location) if variable is None else f"{variable} ({'.'.join(location)})"
        if problem["type"] == "extra_forbidden":
            if not _KEY.fullmatch(location[-1]):  # perhaps no configuration at all: nothing of it is shown
                lines.append("  a name in it is no key of the configuration.")
                continue
            near = difflib.get_close_matches(location[-1], _keys_beside(location, model), n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            lines.append(f"  {key}: there is no such key.{hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {key or 'the file'}: {message}")
    parts = {
        f"{path} is not valid:": of_file,
        "The environment overrides the settings wrongly:": of_environment,
    }
    return "\n".join(
        line for heading, lines in parts.items() if lines for line in (heading, *dict.fromkeys(lines))
    )


def explain_override(error: SettingsError, *, prefix: str) -> tuple[str, str]:
    """What is wrong with an environment variable that should hold a section or a list, and what to do."""
    field = re.search(r'field "(\w+)"', str(error))
    variable = f"{prefix}{field[1].upper()}" if field else f"A variable {prefix}…"
    return f"The environment variable {variable} is not valid JSON.", "Correct it, or unset it."


def _override(location: list[str], *, prefix: str, nested: str) -> str | None:
    """The environment variable that sets a key, or a section that the key is in."""
    names = {name.upper(): name for name in os.environ if name.upper().startswith(prefix)}
    for length in range(len(location), 0, -1):
        name = names.get(prefix + nested.join(location[:length]).upper())
        if name is not None:
            return name
    return None


def _keys_beside(location: list[str], model: type[BaseModel]) -> list[str]:
    """The known keys at the level of an unknown key."""
    section = model
    for part in location[:-1]:
        field = section.model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if nested is None:
            return []
        section = nested
    return list(section.model_fields)

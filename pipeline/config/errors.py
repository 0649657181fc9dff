"""The errors of a configuration as text for the user."""

from __future__ import annotations

import difflib
import re

import yaml
from pydantic import BaseModel, ValidationError

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_KEY = re.compile(r"[A-Za-z][\w-]{0,39}")


def explain_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The problem and its place in the file, without the line itself, which may contain a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it cannot be read as text" if isinstance(error, UnicodeDecodeError) else "it cannot be read"
    mark = error.problem_mark
    problem = _QUOTED.sub("…", error.problem or error.context or "it cannot be read")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each problem; for an unknown key, with the nearest key that `model` has at that level."""
    lines: list[str] = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location)
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
    return "\n".join(dict.fromkeys(lines))


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

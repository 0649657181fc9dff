"""Packages that are imported when they are first used: a command that is refused does not need them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def later(package: str) -> Any:
    """A package, imported by the first access to one of its names. A module that uses it also imports the
    package itself under `TYPE_CHECKING`, for annotations.

    >>> later("math").sqrt(4.0)
    2.0
    """
    return _Later(package)

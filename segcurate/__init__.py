"""segcurate from Python: the steps of a project, and what they found as tables and arrays.

>>> from segcurate import Project
>>> with Project.open("segcurate.yaml") as project:  # doctest: +SKIP
...     print(project.ingest())
"""

from pipeline.errors import ConfigError, DataError, NothingLeft, NotYourTurn, UserError
from segcurate.project import Project

__all__ = ["ConfigError", "DataError", "NotYourTurn", "NothingLeft", "Project", "UserError"]

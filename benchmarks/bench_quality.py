"""The quality of every sampler's uncertainty, over several trained projects (seeds).

`python -m benchmarks.bench_quality --project FOLDER [--project FOLDER …] [--samplers none,tta]` asks
each project for its promoted model, or else for its newest one, assesses it, and prints the mean over
projects, with the lowest and highest value, of every number. A project that has its assessment is not
assessed again, so that a run that was killed goes on where it was; `--again` forgets what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

from db.engine import Database
from db.queries.evaluations import assessment_of
from pipeline.config import Sampler
from pipeline.data.project import Project, load_project
from pipeline.evaluation.quality_lines import table
from pipeline.files import CONFIG_FILE
from pipeline.steps.assess import assess
from pipeline.steps.ready import chosen_model

Key = tuple[str, ...]

PARTS = ("boundary", "interior")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--project", type=Path, action="append", required=True, help="a project's folder")
    parser.add_argument("--samplers", help="separated by commas; all that the model offers by default")
    parser.add_argument("--images", type=int, help="no more held-out images than these")
    parser.add_argument("--again", action="store_true", help="also assess what has an assessment")
    given = parser.parse_args()
    samplers = cast("list[Sampler] | None", given.samplers.split(",") if given.samplers else None)
    documents = [
        document_of(folder, samplers=samplers, images=given.images, again=given.again)
        for folder in given.project
    ]
    for line in summary([numbers(document) for document in documents]):
        print(line)


def document_of(
    folder: Path, *, samplers: Sequence[Sampler] | None, images: int | None, again: bool
) -> dict[str, Any]:
    """A project's assessment, made where there is none of these samplers."""
    project = load_project(folder / CONFIG_FILE)
    database = Database(project.database_url)
    try:
        stored = _stored(database)
        if stored is not None and not again:
            present = {row["sampler"] for row in stored["detection"]}
            if samplers is None or present >= set(samplers):
                print(f"{folder}: assessed already", flush=True)
                return stored
        return _assessed(project, database, samplers=samplers, images=images)
    finally:
        database.close()


def numbers(document: Mapping[str, Any]) -> dict[Key, float]:
    """Every number by (section, sampler, measure, what)."""
    found: dict[Key, float | None] = {}
    for row in document["detection"]:
        if row["part"] == "all":
            found["errors", row["sampler"], row["measure"], row["metric"]] = row["value"]
        elif row["part"] in PARTS and row["metric"] == "auroc":
            found["errors", row["sampler"], row["measure"], f"auroc {row['part']}"] = row["value"]
    for row in document["regions"]:
        found["regions", row["sampler"], row["measure"], row["kind"]] = row["value"]
    for row in document["novelty"]:
        found["novelty", row["sampler"], row["measure"], row["source"]] = row["value"]
    for row in document["reliability"]:
        when = "after" if row["calibrated"] else "before"
        if row["part"] in ("all", *PARTS):
            found["ece", row["sampler"], when, row["part"]] = row["ece"]["value"]
    for row in document["frequency"]:
        found["frequency", row["sampler"], "after", "cells held"] = row["covered"]["value"]
    return {key: value for key, value in found.items() if value is not None}


def summary(projects: Sequence[Mapping[Key, float]]) -> Iterator[str]:
    """A table a section: mean over the projects, lowest to highest."""
    keys = dict.fromkeys(key for project in projects for key in project)
    for section in dict.fromkeys(key[0] for key in keys):
        columns = list(dict.fromkeys(key[3] for key in keys if key[0] == section))
        rows = list(dict.fromkeys(key[1:3] for key in keys if key[0] == section))
        yield f"\n{section}: mean over {len(projects)} projects (lowest–highest)"
        yield from table(
            ["sampler", "measure", *columns],
            [[*row, *(_cell(projects, (section, *row, column)) for column in columns)] for row in rows],
        )


def _stored(database: Database) -> dict[str, Any] | None:
    with database.session(write=False) as session:
        model = chosen_model(session, None)
        found = assessment_of(session, model_id=model.id, kind="quality")
        return None if found is None else found.document


def _assessed(
    project: Project, database: Database, *, samplers: Sequence[Sampler] | None, images: int | None
) -> dict[str, Any]:
    report = assess(project, database, samplers=samplers, most_images=images)
    print(f"\n{project.root}")
    for line in report.lines():
        print(line, flush=True)
    return report.document


def _cell(projects: Sequence[Mapping[Key, float]], key: Key) -> str:
    values = [project[key] for project in projects if key in project]
    if not values:
        return "–"
    return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


if __name__ == "__main__":
    main()

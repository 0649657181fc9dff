"""What a simulation leaves to look at: a page, a picture, and its cells as tables."""

from __future__ import annotations

import json
from pathlib import Path

from db.tables import utc_now
from pipeline.data.project import Project
from pipeline.files import atomic_write_bytes, writable_folder
from pipeline.format import counted
from pipeline.report.figures import write_figure
from pipeline.report.page import render_simulation
from pipeline.report.simulation_figure import draw_simulation
from pipeline.summaries.simulations import SimulationSummary

SIMULATION = "simulation"
"""How its files are named."""


def write_simulation(
    project: Project, found: SimulationSummary, *, folder: Path | None = None
) -> Path | None:
    """Write `simulation.html`, which needs no other file, `simulation.png` with the learning curves, and
    `simulation.csv` and `.json` with every cell and every figure; written again, they are replaced.

    Args:
        folder: `<workdir>/report` by default.

    Returns:
        The page; None where no seed is finished, so that there is nothing to show.

    Raises:
        UserError: the folder cannot be written.
    """
    if not found.seeds:
        return None
    target = folder if folder is not None else project.workdir / "report"
    writable_folder(target)
    title = f"{project.config.name}: {counted(len(found.seeds), 'seed')}, with intervals"
    write_figure(target / f"{SIMULATION}.png", draw_simulation(found, title=title))
    page = render_simulation(project.config.name, found, written_at=utc_now())
    files = {"csv": found.csv(), "json": json.dumps(found.document(), indent=2) + "\n", "html": page}
    for ending, text in files.items():
        atomic_write_bytes(target / f"{SIMULATION}.{ending}", text.encode())
    return target / f"{SIMULATION}.html"

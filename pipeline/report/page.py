"""The pages: each one HTML file with its style, script and pictures inside, which loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.format import counted
from pipeline.report.blocks import Block, Heading, Missing, Section, Text
from pipeline.report.contents import Contents
from pipeline.report.figures import line_color
from pipeline.report.gallery import MISSING_RANKS
from pipeline.report.sections.annotators import annotators
from pipeline.report.sections.calibration import calibration
from pipeline.report.sections.progress import learning, lineage, queue, status, unlabeled
from pipeline.report.sections.quality import quality
from pipeline.report.sections.shift import drift, stress
from pipeline.report.sections.simulation import simulation
from pipeline.summaries.simulations import SimulationSummary

EVERY_INTERVAL = "Every interval is a bootstrap over independent units of images, never over pixels."


@dataclass(frozen=True)
class Page:
    """A page: of what it is, and its sections. `kind` is written beside the brand."""

    project: str
    kind: str
    byline: str
    sections: Sequence[Section]
    footer: str = EVERY_INTERVAL


def render_page(contents: Contents) -> str:
    """The report as HTML."""
    promoted = "promoted" if contents.status.promoted_model else "not promoted"
    byline = f"Model {contents.model} · {promoted} · {_written(contents.written_at)}"
    page = Page(contents.project, "report", byline, sections(contents))
    return render(page, class_colors(contents.class_colors))


def render_simulation(project: str, found: SimulationSummary, *, written_at: datetime) -> str:
    """The page of a simulation as HTML; empty of sections where no seed is finished."""
    byline = f"Simulation {found.hash[:8]} · {counted(len(found.seeds), 'seed')} · {_written(written_at)}"
    footer = "Every interval is over seeds and independent units of test images, never over pixels."
    return render(Page(project, "simulation", byline, simulation(found), footer))


def render(page: Page, colors: str = "") -> str:
    """A whole page as HTML. Text from users is escaped; only the page's own script may run, by its hash.

    Args:
        colors: the CSS of the classes.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=unbroken,
    )
    environment.filters["coded"] = coded
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        page=page,
        style=Markup(_asset("page.css") + colors),
        script=Markup(script),
        script_digest=digest,
    )


def _written(at: datetime) -> str:
    return at.strftime("%d %B %Y, %H:%M UTC")


def sections(contents: Contents) -> list[Section]:
    """The parts of the page: first what to do next, then the evidence."""
    return [
        status(contents),
        queue(contents),
        _gallery(contents),
        learning(contents),
        unlabeled(contents),
        *simulation(contents.simulation),
        calibration(contents),
        quality(contents),
        stress(contents),
        drift(contents),
        *annotators(contents),
        lineage(contents),
    ]


def class_colors(colors: npt.NDArray[np.uint8]) -> str:
    """A CSS class a class: its own colour for areas, and one that can be read as a line on light and dark."""
    rules: list[str] = []
    for index, color in enumerate(colors):
        red, green, blue = (int(value) for value in color)
        rules.append(
            f".c{index}{{--area:#{red:02x}{green:02x}{blue:02x};--light:{line_color(color)};"
            f"--dark:{line_color(color, on_dark=True)};color:var(--light)}}"
        )
    dark = "".join(f".c{index}{{color:var(--dark)}}" for index in range(len(colors)))
    return "\n" + "\n".join(rules) + f"\n@media screen and (prefers-color-scheme:dark){{{dark}}}\n"


def unbroken(value: object) -> object:
    """A text in which a line never breaks between a number and its per cent sign.

    >>> unbroken("12 % of 3")
    '12\xa0% of 3'
    """
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value


def coded(words: str) -> Markup:
    """A text as HTML, with the parts between backticks as code.

    >>> print(coded("Run `a < b`."))
    Run <code>a &lt; b</code>.
    """
    parts = words.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 and index < len(parts) - 1 else escape(part)
        for index, part in enumerate(parts)
    )


def _gallery(contents: Contents) -> Section:
    blocks: list[Block] = []
    for words, gallery in contents.galleries:
        blocks += [Heading(words), gallery]
    if not contents.galleries:
        blocks.append(Missing("No region has been selected by uncertainty yet.", "segcurate select"))
    blocks.append(Heading("Confident but disagreeing"))
    if contents.disagreeing is not None:
        blocks += [
            Text(
                "Each sample is confident and the samples disagree: the model has not learned these regions.",
                tone="note",
            ),
            contents.disagreeing,
        ]
    else:
        blocks.append(Missing("No such region is known; it needs scores with samples.", "segcurate score"))
    return Section(
        "gallery",
        "Regions to label",
        "The handle moves the edge of the chosen layer over the image. The frame is the region to label, and "
        f"the number is its rank in the queue. {MISSING_RANKS}",
        blocks,
        fresh=True,
    )


def _asset(name: str) -> str:
    return (resources.files("pipeline.report") / "templates" / name).read_text(encoding="utf-8")

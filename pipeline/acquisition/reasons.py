"""The reason of each queue item: a line of text for the person who labels it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.ranking import Ranks
from pipeline.acquisition.routing import ROUTE_TEXT, routes
from pipeline.acquisition.selection import NO_STRATUM, Selection
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import SelectionConfig
from pipeline.format import count, percent

BOUNDARY_NATS = 0.5
"""Entropy of a mix of 80 % and 20 %; a region with at least this class mix lies on a boundary."""


def reasons(
    selection: Selection,
    ranks: Ranks,
    config: SelectionConfig,
    *,
    class_names: Sequence[str],
    group_names: Sequence[str],
) -> list[str]:
    """A line for each item of a selection: how it was chosen, its rank, what the model predicts there, and
    whether the uncertainty calls for a label or for a second opinion."""
    measure = STRATEGIES[config.strategy].measure
    items, shortlist = selection.items, selection.shortlist
    everything = f"{count(shortlist.available)} {config.unit}s"
    noise = "" if config.noise_beta is None else f", power noise β = {config.noise_beta:g}"
    route = routes(items, ranks.limits)
    lines: list[str] = []
    for item in range(len(items)):
        stratum = int(selection.stratum[item])
        parts: list[str] = []
        if selection.audit[item]:
            parts.append(f"random audit draw (probability {selection.inclusion_probability:.2g})")
        elif config.strategy == "strided":
            image = int(items.image[item])
            sequence = group_names[int(items.group[image])]
            parts.append(f"strided: position {items.position[image]} of {sequence}")
        elif measure is None:
            drawn_from = everything if stratum == NO_STRATUM else f"{config.unit}s of {class_names[stratum]}"
            parts.append(f"random draw from {drawn_from}")
        elif stratum != NO_STRATUM:
            parts.append(
                f"no. {count(int(ranks.in_class[item]))} of {count(shortlist.classes[stratum])} "
                f"{config.unit}s of {class_names[stratum]} by {measure} × class share{noise}"
            )
        if measure is not None and items.score is not None:
            name = measure.replace("_", " ")
            percentile = f"top {percent(int(ranks.overall[item]) / shortlist.available)} of {everything}"
            drawn = noise if stratum == NO_STRATUM and not selection.audit[item] else ""
            parts.append(f"{name} {items.score[item]:.2f}, {percentile}{drawn}")
        parts.append(_content(items, item, class_names, unit=config.unit))
        if (kind := route[item]) is not None:
            parts.append(ROUTE_TEXT[kind])
        lines.append("; ".join(parts))
    return lines


def _content(candidates: Candidates, index: int, class_names: Sequence[str], *, unit: str) -> str:
    share = float(candidates.class_share[index])
    predicted, stratum = int(candidates.predicted_class[index]), int(candidates.stratum[index])
    name = class_names[predicted]
    content = f"all {name}" if share >= 0.995 else f"mostly {name} ({100 * share:.0f} %)"
    if stratum != predicted:
        content += f", {class_names[stratum]} {percent(float(candidates.stratum_share[index]))}"
    mixed = candidates.impurity[index] * math.log(len(class_names)) >= BOUNDARY_NATS
    return f"{content}, on a boundary" if mixed and unit == "region" else content

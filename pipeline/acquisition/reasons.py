"""The reason of each queue item: a line of text for the person who labels it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.acquisition.candidates import NOT_PREDICTED, Candidates
from pipeline.acquisition.ranking import Ranks
from pipeline.acquisition.routing import ROUTE_TEXT, routes
from pipeline.acquisition.selection import NO_STRATUM, Selection
from pipeline.acquisition.strategies import STRATEGIES, estimated_cost
from pipeline.config import SelectionConfig
from pipeline.format import count, percent

BOUNDARY_NATS = 0.5
"""Entropy of a mix of 80 % and 20 %; a region with at least this class mix lies on a boundary."""
ALL = 0.995
"""Share of a region from which on one class counts as all of it."""


def reasons(
    selection: Selection,
    ranks: Ranks,
    config: SelectionConfig,
    *,
    class_names: Sequence[str],
    group_names: Sequence[str],
) -> list[str]:
    """A few short sentences for each item of a selection: why it was chosen, what the model predicts there,
    and whether the uncertainty calls for a label or for a second opinion."""
    route = routes(selection.items, ranks.limits)
    lines: list[str] = []
    for item in range(len(selection.items)):
        sentences = [
            _origin(selection, ranks, config, item, class_names=class_names, group_names=group_names)
        ]
        if selection.items.predicted_class[item] != NOT_PREDICTED:
            sentences.append(_content(selection.items, item, class_names, unit=config.unit))
        if (kind := route[item]) is not None:
            sentences.append(ROUTE_TEXT[kind])
        lines.append(" ".join(sentences))
    return lines


def _origin(
    selection: Selection,
    ranks: Ranks,
    config: SelectionConfig,
    item: int,
    *,
    class_names: Sequence[str],
    group_names: Sequence[str],
) -> str:
    """Why the item was chosen."""
    items, shortlist, unit = selection.items, selection.shortlist, config.unit
    measure = STRATEGIES[config.strategy].measure
    stratum = int(selection.stratum[item])
    everything = f"{count(shortlist.available)} {unit}s"
    if stratum != NO_STRATUM:
        everything = f"{count(shortlist.classes[stratum])} {unit}s with {class_names[stratum]}"
    if selection.audit[item]:
        return "Picked at random, as a check."
    if config.strategy == "strided":
        image = int(items.image[item])
        return f"Image {items.position[image]} of {group_names[int(items.group[image])]}, in even steps."
    if config.strategy == "coverage":
        return f"Stands for a group of {unit}s that look alike, as the pretrained encoder sees them."
    if measure is None or items.score is None:
        return f"Picked at random from {everything}."
    by_share = stratum != NO_STRATUM
    rank = int(ranks.in_class[item] if by_share else ranks.overall[item])
    place = (
        f"Most uncertain of {everything}"
        if rank == 1
        else f"No. {count(rank)} of {everything} by uncertainty"
    )
    figure = f"{measure.replace('_', ' ')} {items.score[item]:.2f} of 1"
    how = f", times the share of {class_names[stratum]}" if by_share else ""
    noise = "" if config.noise_beta is None else f", with power noise β = {config.noise_beta:g}"
    cost = ""
    if config.cost_power:
        clicks = estimated_cost(items)[item]
        cost = f", divided by about {clicks:.0f} clicks to the power of {config.cost_power:g}"
    return f"{place} ({figure}{how}{cost}{noise})."


def _content(candidates: Candidates, index: int, class_names: Sequence[str], *, unit: str) -> str:
    """What the model predicts there: the most frequent class, and the one that the item counts for."""
    share = float(candidates.class_share[index])
    predicted, stratum = int(candidates.predicted_class[index]), int(candidates.stratum[index])
    content = (
        f"all {class_names[predicted]}" if share >= ALL else f"{percent(share)} {class_names[predicted]}"
    )
    if stratum != predicted:
        content += f", {percent(float(candidates.stratum_share[index]))} {class_names[stratum]}"
    mixed = candidates.impurity[index] * math.log(len(class_names)) >= BOUNDARY_NATS
    return f"Predicted {content}{', on a boundary' if mixed and unit == 'region' else ''}."

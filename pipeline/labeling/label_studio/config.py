"""Label Studio's labeling interface: its XML configuration, and the names of the classes in results.

Masks are one control, and rectangles that show where to look another, so that the two cannot be confused.
The interface shows a task's data, by the names below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree

from pipeline.labeling.encoding import LabelMap, hexadecimal

Masks = Literal["brush", "bitmask"]
"""`bitmask` is exact to the pixel, and only newer servers support it; all of them support `brush`."""

IMAGE, MASK, LOOK = "image", "mask", "look"
"""Names in the configuration: of the image, of the control for masks, and of that for rectangles."""
LOOK_HERE = "look here"
"""The label of a queued region."""
HEATMAPS, TITLE, REASON = "heatmaps", "title", "reason"
"""Names of the members of a task's data that are shown beside the image."""

_TAGS: dict[Masks, str] = {"brush": "BrushLabels", "bitmask": "BitmaskLabels"}
_LOOK_COLOR = "#00d5ff"
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def labeling_config(labels: LabelMap, *, masks: Masks = "bitmask", heatmaps: bool = True) -> str:
    """The XML configuration of a project.

    Args:
        heatmaps: whether tasks have pictures of where to look, which are shown beside the image.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value=f"${TITLE}", size="4")
    ElementTree.SubElement(view, "Header", value=f"${REASON}", size="5")
    control = ElementTree.SubElement(view, _TAGS[masks], name=MASK, toName=IMAGE)
    for value, color in zip(label_values(labels.names), labels.colors, strict=True):
        ElementTree.SubElement(control, "Label", _label(value, color))
    # regions are shown, and annotators draw no more of them
    hidden = ElementTree.SubElement(view, "View", style="display: none")
    look = {"name": LOOK, "toName": IMAGE, "strokeWidth": "3", "fillOpacity": "0"}
    look_control = ElementTree.SubElement(hidden, "RectangleLabels", look)
    ElementTree.SubElement(look_control, "Label", value=LOOK_HERE, background=_LOOK_COLOR)
    row = ElementTree.SubElement(view, "View", style="display: flex; gap: 12px")
    left = ElementTree.SubElement(row, "View", style="flex: 3; min-width: 0")
    tools = {"zoom": "true", "zoomControl": "true", "rotateControl": "false", "smoothing": "false"}
    ElementTree.SubElement(left, "Image", {"name": IMAGE, "value": f"${IMAGE}"} | tools)
    if heatmaps:
        right = ElementTree.SubElement(row, "View", style="flex: 2; min-width: 0")
        # a list, because Label Studio takes no uploads where two tags have a `value`
        picture = {"name": "heatmap", "valueList": f"${HEATMAPS}", "zoom": "true"}
        ElementTree.SubElement(right, "Image", picture)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def masks_of(config: str) -> Masks | None:
    """The kind of masks of a server's configuration; None where it is not one of these."""
    control = _mask_control(config)
    return None if control is None else next(kind for kind, tag in _TAGS.items() if tag == control.tag)


def with_masks(config: str, masks: Masks) -> str:
    """A configuration of `labeling_config` with this kind of masks."""
    if masks_of(config) in (None, masks):
        return config
    view = ElementTree.fromstring(config)
    for control in view.iter(_TAGS["brush" if masks == "bitmask" else "bitmask"]):
        control.tag = _TAGS[masks]
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def label_values(names: Sequence[str]) -> list[str]:
    """The name of each class in results: its own, unless XML cannot hold that.

    >>> label_values(["road & <kerb>", "a\\x00b"])
    ['road & <kerb>', 'class 1']
    """
    values: list[str] = []
    for index, name in enumerate(names):
        value = f"class {index}" if _NO_XML.search(name) else name
        while value != name and value in names:
            value += "'"
        values.append(value)
    return values


def _mask_control(config: str) -> ElementTree.Element | None:
    if "<!" in config:  # a declaration is never needed, and can be a bomb
        return None
    try:
        view = ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return None
    return next((tag for tag in view.iter() if tag.tag in _TAGS.values() and tag.get("name") == MASK), None)


def _label(value: str, color: tuple[int, int, int]) -> dict[str, str]:
    label = {"value": value, "background": hexadecimal(color)}
    if "$" in value:  # would be looked up in the task's data; results have the alias
        label |= {"value": value.replace("$", "\N{FULLWIDTH DOLLAR SIGN}"), "alias": value}
    return label

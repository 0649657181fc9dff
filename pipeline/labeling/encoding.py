"""The encoding of exported and imported masks: which number, or which colour, means which class.

Legend: H height, W width, R regions. A mask is uint8 [H, W], class index or 255; its file has the class ids
of the project's `data.classes`, or the colours of the label map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE, DataConfig
from pipeline.data.images import encode_png
from pipeline.data.masks import Mask, MaskCodec, former_palette, pack, palette, read_mask
from pipeline.files import atomic_write_bytes
from pipeline.regions.outlines import decode_outline, paint_regions

COVERED = 0.5
"""Share of a region's pixels that must be painted for the region to count as labeled. Selection excludes
a region by the same share; a pixel whose class an annotator cannot tell stays unpainted."""

VOID = 254
"""The class index of what is drawn with a name that means no class."""

_FORMER_UNPAINTED = 65535
"""The value of "not labeled" in queues of earlier versions, where a class has 255."""
_UNPAINTED_COLORS = ((224, 224, 192), (255, 0, 255), (127, 127, 127), (1, 2, 3))


class LabelMap:
    """The values and colours of the masks of an export.

    Every class has a colour, and "not labeled" always has a value and a colour: also where the project's own
    masks have none, because a mask of some regions needs them.

    Args:
        aliases: the class that other names mean, which a source may use beside the classes' own: it counts
            where a name is both. None means no class; such pixels are read as `VOID`. Not given for a source
            that comes back from an exported queue.

    Attributes:
        aliases: their class indices.
        foreign: whether a source may come from a project that segcurate has not set up in the tool.
    """

    def __init__(self, config: DataConfig, *, aliases: Mapping[str, str | None] | None = None) -> None:
        ids = [index if item.id is None else item.id for index, item in enumerate(config.classes)]
        colors = [(int(red), int(green), int(blue)) for red, green, blue in palette(config)]
        unpainted = (IGNORE, *config.ignore_index, *range(254, 0, -1), _FORMER_UNPAINTED)
        self.names = config.class_names
        self.foreign = aliases is not None
        self.aliases = {
            alias: VOID if name is None else self.names.index(name) for alias, name in (aliases or {}).items()
        }
        self.ids = ids
        self.colors = colors
        self.unpainted_id = next(value for value in unpainted if value not in ids)
        self.unpainted_color = next(
            color for color in (*config.ignore_color, *_UNPAINTED_COLORS) if color not in colors
        )
        self.has_own_colors = all(item.color is not None for item in config.classes)
        self.ignored_colors = {*config.ignore_color, self.unpainted_color}
        classes = [
            item.model_copy(update={"id": id_, "color": color})
            for item, id_, color in zip(config.classes, ids, colors, strict=True)
        ]
        travelling = config.model_copy(
            update={
                "classes": classes,
                "ignore_index": [
                    *config.ignore_index,
                    self.unpainted_id,
                    *({_FORMER_UNPAINTED} - set(ids)),
                ],
                "ignore_color": [*config.ignore_color, self.unpainted_color],
            }
        )
        codec = MaskCodec.from_config(travelling.model_copy(update={"mask_encoding": "auto"}))
        former = {pack(color): index for index, color in enumerate(former_palette(config))}
        self._codec = replace(
            codec,
            index_of_color=former | codec.index_of_color,
            colors_decide=self.has_own_colors,
        )

    @property
    def meanings(self) -> dict[str, int]:
        """The class index of each name that a source may use."""
        return {name: index for index, name in enumerate(self.names)} | self.aliases

    def document(self) -> dict[str, Any]:
        """The content of `labelmap.json`."""
        return {
            "classes": [
                {"index": index, "name": name, "id": id_, "color": list(color)}
                for index, (name, id_, color) in enumerate(
                    zip(self.names, self.ids, self.colors, strict=True)
                )
            ],
            "not_labeled": {"id": self.unpainted_id, "color": list(self.unpainted_color)},
        }

    def write(self, path: Path, mask: Mask) -> None:
        """Write a mask as a PNG of class ids with the classes' colours as its palette; in grey and 16 bits
        where an id needs them.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        largest = max(*self.ids, self.unpainted_id)
        table = np.zeros(256, dtype=np.uint16 if largest > 255 else np.uint8)
        table[: len(self.ids)] = self.ids
        table[IGNORE] = self.unpainted_id
        color_of = dict(zip(self.ids, self.colors, strict=True)) | {self.unpainted_id: self.unpainted_color}
        colors = [color_of.get(value, (0, 0, 0)) for value in range(256)] if largest <= 255 else []
        atomic_write_bytes(path, encode_png(table[mask], colors))

    def read(self, path: Path, *, size: tuple[int, int]) -> Mask:
        """Read an annotator's mask: an index mask, a palette mask, or colours of the label map.

        It is read as `read_mask` reads the project's own masks.

        Args:
            size: width and height of the image.

        Returns:
            uint8 [H, W], class index or 255.

        Raises:
            DataError: the file is not a mask of this size and label map; the message gives the reason.
        """
        return read_mask(path, self._codec, size=size)


def hexadecimal(color: Sequence[int]) -> str:
    """A colour as `#rrggbb`.

    >>> hexadecimal((255, 0, 10))
    '#ff000a'
    """
    return "#" + "".join(f"{value:02x}" for value in color)


def only_inside(
    mask: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None] | None = None
) -> Mask:
    """A copy of a mask with 255 outside of the regions: boxes [R, 4], and R outlines, None for a region that
    fills its box.

    >>> only_inside(np.zeros((1, 4), np.uint8), np.array([[1, 0, 2, 1]], np.int32)).tolist()
    [[255, 0, 0, 255]]
    """
    inside = np.zeros(mask.shape, dtype=bool)
    paint_regions(inside, boxes, [None] * len(boxes) if outlines is None else outlines)
    return np.where(inside, mask, np.uint8(IGNORE))


def painted_shares(
    mask: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None] | None = None
) -> npt.NDArray[np.float64]:
    """Share [R] of each region's pixels that have a class.

    >>> painted_shares(np.array([[0, 255, 1, 1]], np.uint8), np.array([[0, 0, 2, 1], [2, 0, 2, 1]])).tolist()
    [0.5, 1.0]
    """
    painted = mask != IGNORE
    shares = [
        painted[y : y + h, x : x + w][decode_outline(outline, width=w, height=h)].mean()
        for (x, y, w, h), outline in zip(boxes.tolist(), outlines or [None] * len(boxes), strict=True)
    ]
    return np.array(shares)


def is_whole_image(
    mask: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None] | None = None
) -> bool:
    """Whether a mask labels more of the image than its queued regions.

    >>> is_whole_image(np.array([[0, 0, 255, 255]], np.uint8), np.array([[0, 0, 2, 1]], np.int32))
    False
    """
    outside = only_inside(np.zeros_like(mask), boxes, outlines) == IGNORE
    if not outside.any():
        return True
    covered = bool((painted_shares(mask, boxes, outlines) >= COVERED).all())
    return covered and bool((mask[outside] != IGNORE).mean() >= COVERED)

"""Queues of small images on their way out, made from any masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool
from pipeline.labeling.manifest import ManifestRegion, export_name
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue

NAMES = ("road", 'a "quoted" name', "<script>alert(1)</script>", "日本", "a,b;c", "it's\tone", "background")

MASKS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 255]),
) | st.builds(
    lambda seed, height, width: shapes(np.random.default_rng(seed), height=height, width=width),
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.integers(1, 60),
)
"""Noise, and shapes with holes, in many parts, and of one pixel; not all of the classes are in each."""


def shapes(generator: np.random.Generator, *, height: int, width: int) -> Mask:
    """Rings, bars and specks of some of the classes; the rest is not labeled."""
    mask = np.full((height, width), 255, dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for value in generator.permutation(len(NAMES))[:4].tolist():
        middle = generator.random(2) * (height, width)
        distance = np.hypot(rows - middle[0], columns - middle[1])
        radius = generator.random() * max(height, width) / 2
        mask[(distance < radius) & (distance > radius / 2)] = value
        mask[generator.random((height, width)) < 0.01] = value
    return mask


def label_map(names: Sequence[str] = NAMES) -> LabelMap:
    return LabelMap(DataConfig(images=["images"], classes=list(names)))  # pyright: ignore[reportArgumentType]


def outgoing_queue(
    name: str = "round-03", *, labels: LabelMap | None = None, overlays: bool = False
) -> OutgoingQueue:
    return OutgoingQueue(
        name=name,
        round=3,
        kind="selected",
        project="streets",
        root=Path("/srv/streets"),
        model="r02",
        labels=labels or label_map(),
        overlays=overlays,
    )


def outgoing_image(folder: Path, mask: Mask, *, index: int = 0) -> OutgoingImage:
    """An image of a mask's size, written into `folder`, with the mask as what is proposed for it."""
    height, width = mask.shape
    path = folder / f"image {index}.png"
    Image.fromarray((mask // 2).astype(np.uint8)).save(path)
    region = ManifestRegion(
        item=100 + index, rank=index + 1, x=0, y=0, w=width, h=height, score=0.5, slice="selected", reason="r"
    )
    return OutgoingImage(
        image_id=1000 + index,
        uri=f"images/image {index}.png",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        width=width,
        height=height,
        name=export_name(rank=index + 1, image_id=1000 + index, uri=path.name),
        rank=index + 1,
        position=index,
        source=path,
        scores={"entropy": 0.5},
        mask=mask,
        map=np.zeros(mask.shape, dtype=np.float32),
        title="entropy",
        regions=[region],
    )


def write_queue(tool: Tool, root: Path, masks: Iterable[Mask], *, queue: OutgoingQueue | None = None) -> Path:
    """The folder that a tool's writer makes of the masks."""
    folder, pictures = root / "queue", root / "pictures"
    for made in (folder, pictures):
        made.mkdir(parents=True)
    writer = tool.writer(folder, queue or outgoing_queue())
    for index, mask in enumerate(masks):
        writer.add(outgoing_image(pictures, mask, index=index))
    writer.finish()
    return folder


def decoded(answer: Annotation | Rejected, size: tuple[int, int]) -> DecodedMask | str:
    """The mask of an answer for an image of this width and height, or why there is none."""
    try:
        return answer.reason if isinstance(answer, Rejected) else answer.read(*size)
    except DataError as error:
        return str(error)


def read_masks(
    found: Iterable[Annotation | Rejected], sizes: dict[int | str, tuple[int, int]]
) -> Iterator[tuple[int | str, DecodedMask | str]]:
    """The image and mask of each answer, or why there is none; of a rejection, the subject and the reason."""
    for answer in found:
        if isinstance(answer, Rejected):
            yield answer.subject, answer.reason
        else:
            yield answer.image, decoded(answer, sizes[answer.image])


def sizes_of(masks: Sequence[npt.NDArray[np.uint8]]) -> dict[int | str, tuple[int, int]]:
    """Width and height of the images of `write_queue`, by their ids."""
    return {1000 + index: mask.shape[::-1] for index, mask in enumerate(masks)}

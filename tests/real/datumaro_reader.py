"""Run by Datumaro's own Python: makes arrays of a data set on disk, or a data set of arrays.

    python datumaro_reader.py read FORMAT FOLDER ARRAYS.npz
    python datumaro_reader.py write FORMAT ARRAYS.npz FOLDER

The arrays are uint8 masks by the names of their items (255 where nothing is labeled); `labels` are the names
of the classes, in JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, Mask  # pyright: ignore[reportMissingImports]
from datumaro.components.dataset import Dataset  # pyright: ignore[reportMissingImports]
from datumaro.components.dataset_base import DatasetItem  # pyright: ignore[reportMissingImports]
from datumaro.components.media import Image  # pyright: ignore[reportMissingImports]
from PIL import Image as Picture

NOTHING = 255


def read(kind: str, folder: str, arrays: str) -> None:
    """Masks as Datumaro sees them: later shapes over earlier ones, those of a higher z-order over all."""
    dataset = Dataset.import_from(folder, kind)
    labels = [label.name for label in dataset.categories()[AnnotationType.label]]
    masks: dict[str, np.ndarray] = {"labels": np.array(json.dumps(labels))}
    for item in dataset:
        shapes = [shape for shape in item.annotations if shape.type == AnnotationType.mask]
        size = shapes[0].image.shape if item.media is None else item.media.size
        mask = np.full(size, NOTHING, dtype=np.uint8)
        for shape in sorted(shapes, key=lambda shape: shape.z_order):
            if not (kind.startswith("voc") and labels[shape.label] == "background"):
                mask[np.asarray(shape.image).astype(bool)] = shape.label
        masks[item.id] = mask
    np.savez(arrays, **masks)  # pyright: ignore[reportArgumentType]


def write(kind: str, arrays: str, folder: str) -> None:
    """A data set with a mask for each class of each item."""
    loaded = dict(np.load(arrays))
    labels = json.loads(str(loaded.pop("labels")))
    with tempfile.TemporaryDirectory() as pictures:
        items = []
        for name, mask in loaded.items():
            path = Path(pictures) / f"{name}.png"
            Picture.fromarray(mask).save(path)
            shapes = [
                Mask(mask == index, label=index, id=index + 1, group=index + 1, z_order=0)
                for index in np.unique(mask).tolist()
                if index != NOTHING
            ]
            items.append(DatasetItem(name, media=Image.from_file(path=str(path)), annotations=shapes))
        dataset = Dataset.from_iterable(items, categories=labels)
        dataset.export(folder, kind, save_media=True)


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])

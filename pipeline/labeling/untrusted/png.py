"""An untrusted PNG of a mask: opened after a check of its size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.exchange import check_size


@contextmanager
def open_png(
    content: bytes, *, width: int, height: int
) -> Generator[tuple[Image.Image, io.BufferedReader[Any]]]:
    """A PNG of the size of its image, and its stream; an error of the block counts as damage of it.

    Raises:
        DataError: it has another size, which is checked before it is decoded, or it is not readable.
    """
    try:
        stream = io.BufferedReader(cast(io.RawIOBase, io.BytesIO(content)))
        with warnings.catch_warnings(), Image.open(stream, formats=["PNG"]) as picture:
            warnings.simplefilter("ignore")
            check_size(picture.size, width, height)
            yield picture, stream
    except DataError:
        raise
    except Exception as error:  # decoders raise any error for a damaged file
        raise DataError(
            "The mask is not a readable PNG.", "Export it from the labeling tool again."
        ) from error

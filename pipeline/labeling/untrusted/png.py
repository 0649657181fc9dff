"""An untrusted PNG of a mask: opened after a check of its size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.exchange import check_size


@contextmanager
def open_png(content: bytes, *, width: int, height: int) -> Generator[Image.Image]:
    """A PNG that has the size of its image; an error of the block counts as damage of the file.

    Raises:
        DataError: it has another size, which is checked before it is decoded, or it is not readable.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            warnings.simplefilter("ignore")
            check_size(picture.size, width, height)
            yield picture
    except DataError:
        raise
    except Exception as error:  # decoders raise any error for a damaged file
        raise DataError(
            "The mask is not a readable PNG.", "Export it from the labeling tool again."
        ) from error

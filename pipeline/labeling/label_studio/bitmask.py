"""Label Studio's bitmasks: PNG files as data URLs, in which painted pixels are opaque black on nothing.

Legend: H height, W width.
"""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.label_studio.brush import PAINTED
from pipeline.labeling.untrusted.png import open_png

PREFIX = "data:image/png;base64,"

_REMEDY = "Export it from Label Studio again."


def encode(mask: npt.NDArray[np.bool_]) -> str:
    """The mask [H, W] as a data URL."""
    stream = io.BytesIO()
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette([0, 0, 0, 0, 0, 0])
    picture.save(stream, format="PNG", bits=1, transparency=0, optimize=False)
    return PREFIX + base64.b64encode(stream.getvalue()).decode()


def decode(url: object, *, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The painted pixels of an untrusted data URL, bool [H, W].

    Args:
        url: any JSON value.

    Raises:
        DataError: it is no PNG of this size with transparency. Its size is checked before it is decoded.
    """
    if not isinstance(url, str) or not url.startswith(PREFIX):
        raise DataError("The mask is not a PNG in a data URL.", _REMEDY)
    try:
        content = base64.b64decode(url[len(PREFIX) :], validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError("The mask is not a readable PNG.", _REMEDY) from error
    with open_png(content, width=width, height=height) as (picture, _):
        if not picture.has_transparency_data:
            raise DataError("The mask's PNG has no transparency, so that nothing is painted.", _REMEDY)
        return np.asarray(picture.convert("RGBA").getchannel("A")) >= PAINTED

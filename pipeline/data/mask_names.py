"""How masks are called after their images, inferred from the names of files alone."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice, takewhile
from pathlib import Path

from pipeline.data.masks import MASK_ENDINGS
from pipeline.data.sources import Found

MOST_COMPARED = 200
"""Images whose names are compared with those of the masks, spread over all."""
_MOST_LISTED = 100_000
_LEAST_SHARE = 0.25
"""Of the images, those that end in a suffix: a folder may hold the image, its mask and more files of it."""
_MASK_WORD = re.compile("mask|label|seg|gt|annot|truth", re.IGNORECASE)
_ENDING = re.compile(r"[-_. ][^{}/]*[^\W\d_][^{}/]*")
"""The end of a name that tells what a file is, such as `_img`; `_0001` tells which one it is."""
_REST = re.compile(rf"({_ENDING.pattern})?\.[^.]+")


def infer_names(folder: Path, images: Sequence[Found]) -> tuple[str, str] | None:
    """`data.mask_template` and `data.image_suffix` by which most images have a mask in a folder, such as
    `("{parent}/{stem}_mask.png", "_img")` for `a_mask.png` of `a_img.png`; None where no two images are
    called alike. Among equals, the mask is the file that is called so, and the suffix is the shorter one.
    """
    sample = images[:: max(1, len(images) // MOST_COMPARED)][:MOST_COMPARED]
    ends = Counter(end for image in sample for end in _ends(image.stem))
    usual = ["", *(end for end, number in ends.items() if number >= max(2, _LEAST_SHARE * len(sample)))]
    names_of = cache(_masks_in)
    votes: Counter[tuple[str, str]] = Counter()
    for image in sample:
        for above, where in (("{parent}/", folder / image.parent), ("", folder)):
            for suffix in usual:
                if image.stem.endswith(suffix):
                    rests = _rests(names_of(where), image, suffix, itself=where / image.name == image.path)
                    votes.update((f"{above}{{stem}}{rest}", suffix) for rest in rests)
    best = max(votes, key=_preference(votes), default=None)
    return best if best is not None and votes[best] > 1 else None


def _ends(stem: str) -> Iterator[str]:
    """The ends of a name that may tell what kind of file it is."""
    for match in re.finditer("[-_. ]", stem):
        if match.start() and _ENDING.fullmatch(stem, match.start()):
            yield stem[match.start() :]


def _rests(names: Sequence[str], image: Found, suffix: str, *, itself: bool) -> Iterator[str]:
    """What follows the image's name without its suffix in the names of masks, sorted. `itself`: whether the
    image is one of these files."""
    base = image.stem.removesuffix(suffix)
    following = map(names.__getitem__, range(bisect_left(names, base), len(names)))
    for name in takewhile(lambda name: name.startswith(base), following):
        rest = name[len(base) :]
        if _REST.fullmatch(rest) and not (itself and name == image.name):
            yield rest


def _masks_in(folder: Path) -> list[str]:
    """The names of a folder's files that may be masks, sorted; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if not entry.name.startswith("."))
            may_be = (name for name in names if os.path.splitext(name)[1].lower() in MASK_ENDINGS)
            return sorted(islice(may_be, _MOST_LISTED))
    except OSError:
        return []


def _preference(votes: Counter[tuple[str, str]]) -> Callable[[tuple[str, str]], tuple[int, int, int, bool]]:
    def of(names: tuple[str, str]) -> tuple[int, int, int, bool]:
        template, suffix = names
        called_so = bool(_MASK_WORD.search(template.rpartition("}")[2])) - bool(_MASK_WORD.search(suffix))
        return votes[names], called_so, -len(suffix + template.rpartition("}")[2]), "{parent}" in template

    return of

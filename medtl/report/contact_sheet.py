"""Small pictures of a folder's images -> one page to look through before training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl.report.findings import Refusal
from medtl.report.html import write_page
from medtl.report.pictures import encode_grey, shown_size

PAGE_NAME = "contact_sheet.html"
THUMBNAIL_SIDE = 160  # px of the longer side
MOST_TILES = 500  # on a page of about 4 MB
FEW_REFUSALS = 10  # so many are unfolded from the start


@dataclass(frozen=True)
class Tile:
    """One image of the sheet. Its texts must not identify a patient.

    thumbnail: None if it must not be shown; `withheld` then gives the reason. problems: one badge each.
    """

    sample_id: str
    group: str
    matrix: str
    spacing: str
    thumbnail: dict[str, Any] | None
    withheld: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContactSheet:
    """What the page shows: facts (name -> text) of the folder and of each group, tiles, and refusals.

    images: how many there are; `tiles` may be a part of them.
    """

    facts: Mapping[str, str]
    groups: Mapping[str, Mapping[str, str]]
    tiles: Sequence[Tile]
    refusals: Sequence[Refusal]
    images: int


def make_thumbnail(grey: NDArray[np.float32], spacing_mm: tuple[float, ...] | None) -> dict[str, Any]:
    """Return an image (H, W) in [0, 1], or the middle slice of a volume (D, H, W), as a small picture.

    source: a data URI; width, height: on the page in px, in true proportions.
    """
    plane = grey[grey.shape[0] // 2] if grey.ndim == 3 else grey
    width, height = shown_size(plane.shape, spacing_mm, THUMBNAIL_SIDE)
    resized = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BOX))
    return {"source": encode_grey(resized), "width": width, "height": height}


def write_contact_sheet(out: Path, sheet: ContactSheet) -> Path:
    """Write contact_sheet.html below `out` and return its path. Raises OutputError output-unwritable."""
    remarks = Counter(text for tile in sheet.tiles for text in (*tile.problems, *tile.notes))
    return write_page(
        out / PAGE_NAME,
        script="contact_sheet.js",
        sheet=sheet,
        groups=list(dict.fromkeys(tile.group for tile in sheet.tiles)),
        remarks=remarks.most_common(),
        problems=sum(bool(tile.problems) for tile in sheet.tiles),
        few=FEW_REFUSALS,
        side=THUMBNAIL_SIDE,
    )

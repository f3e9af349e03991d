"""A training run -> one page: its stages and curves, its validation, its most confident errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.report.evaluation_page import evaluation_parts
from medtl.report.findings import ModelCard
from medtl.report.html import write_page
from medtl.report.pictures import write_picture
from medtl.report.site import PICTURE_NAME, remove_stale, training_charts

WRONG_SIDE = 240  # px


@dataclass(frozen=True, eq=False)
class WrongAnswer:
    """A validation study that was classified wrongly.

    predicted, label: in words. probability: of the prediction. image: grey in [0, 1], (H, W) or (D, H, W),
    None if unavailable; spacing_mm: along its axes.
    """

    sample_id: str
    predicted: str
    label: str
    probability: float
    image: NDArray[np.float32] | None = None
    spacing_mm: tuple[float, ...] | None = None


def write_run_page(
    out: Path,
    card: ModelCard,
    evaluation: Mapping[str, Any],
    seconds: float | None,
    wrong: Sequence[WrongAnswer] | None,
) -> Path:
    """Write index.html below `out`, with pictures in images/, and return it.

    evaluation: of the validation split, as for evaluation_parts. seconds: of the whole training. wrong: most
    confident first; None if unknown. Raises OutputError output-unwritable.
    """
    pictures = [_picture(out / "images", case) for case in wrong or ()]
    remove_stale(out / "images", PICTURE_NAME, pictures)
    return write_page(
        out / "index.html",
        template="run.html",
        pictures=True,
        card=card,
        seconds=seconds,
        wrong=None if wrong is None else list(zip(wrong, pictures, strict=True)),
        pictured=any(pictures),
        **training_charts(card),
        **evaluation_parts(evaluation, card),
    )


def _picture(folder: Path, case: WrongAnswer) -> str:
    """Write the image, or the middle slice of a volume, and return the file name; "" without an image."""
    if case.image is None:
        return ""
    plane = case.image[len(case.image) // 2] if case.image.ndim == 3 else case.image
    return write_picture(folder, plane, None, case.spacing_mm, WRONG_SIDE)

"""Prepare many series in order: in this process, or in child processes where that takes long."""

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.in_children import work_in_order
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.quality import Oddity, find_oddity
from medtl.imaging.series import Series, read_series

# Prepared pixels are kept as so many steps of [0, 1].
STEPS = 65535

# A job that is done sooner starts no children.
ALONE_SECONDS = 2.0


class Pixels(NamedTuple):
    """Prepared pixels of one image, uint16 (C, *size), and what is odd about the image."""

    values: NDArray[np.uint16]
    oddity: Oddity | None


Outcome = Pixels | ReadError


def prepare_in_order(
    series: Sequence[Series], config: PreprocessingConfig, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each series, in order. Raises TrainingError worker-lost."""
    return work_in_order(partial(prepare_one, config=config), series, workers, ALONE_SECONDS)


def prepare_one(series: Series, config: PreprocessingConfig) -> Outcome:
    """Read one series and bring it to the grid."""
    try:
        image = read_series(series)
        pixels = prepare_image(image, config).pixels
    except ReadError as error:
        return error
    return Pixels(np.round(pixels * STEPS).astype(np.uint16), find_oddity(image))

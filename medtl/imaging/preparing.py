"""Prepare many series in order: in this process, or in child processes where that takes long."""

import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medtl.errors import ReadError, TrainingError
from medtl.imaging.in_order import in_order
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.quality import Oddity, find_oddity
from medtl.imaging.series import Series, read_series

# Prepared pixels are kept as so many steps of [0, 1].
STEPS = 65535

# A job that is done sooner starts no children.
ALONE_SECONDS = 2.0
# A bound on memory: each holds an image, and two are under way for each.
MOST_CHILDREN = 16
PARENT_CHECK_SECONDS = 0.5


class Pixels(NamedTuple):
    """Prepared pixels of one image, uint16 (C, *size), and what is odd about the image."""

    values: NDArray[np.uint16]
    oddity: Oddity | None


Outcome = Pixels | ReadError


def prepare_in_order(
    series: Sequence[Series], config: PreprocessingConfig, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each series, in order: in this process, and in children where that takes long.

    Threads would not help: parsing and the transforms' bookkeeping are Python, which runs one at a time.
    """
    count = _usable_processors() if workers is None else workers
    patience = ALONE_SECONDS if workers is None else 0.0
    started, done = time.monotonic(), 0
    while done < len(series) and (
        count <= 1 or time.monotonic() - started < patience or len(series) - done < done
    ):
        yield prepare_one(series[done], config)
        done += 1
    if done < len(series):
        yield from _prepare_in_children(series[done:], config, min(count, len(series) - done))


def _usable_processors() -> int:
    """Return how many children pay: none where forking is not safe, as with macOS's libraries."""
    return min(MOST_CHILDREN, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1


def prepare_one(series: Series, config: PreprocessingConfig) -> Outcome:
    """Read one series and bring it to the grid."""
    try:
        image = read_series(series)
        pixels = prepare_image(image, config).pixels
    except ReadError as error:
        return error
    return Pixels(np.round(pixels * STEPS).astype(np.uint16), find_oddity(image))


def _prepare_in_children(
    series: Sequence[Series], config: PreprocessingConfig, count: int
) -> Iterator[Outcome]:
    """Yield what becomes of each series, in order, with two a child in the making or waiting.

    Raises TrainingError worker-lost.
    """
    pool = ProcessPoolExecutor(count, get_context("fork"), _begin_child, (os.getpid(),))
    try:
        for found in in_order(lambda one: pool.submit(_prepare_for_parent, one, config), series, 2 * count):
            yield found if isinstance(found, Pixels) else _to_error(*found)
    except BrokenProcessPool as error:
        reason = "a process that prepares images was ended; memory may have run out"
        fix = "free memory and start again: it goes on where it was"
        raise TrainingError("worker-lost", reason, fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_child(parent: int) -> None:
    """Leave the terminal, the threads and the signals of the parent to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar's hold locks of its thread
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent has gone, however it went."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _prepare_for_parent(series: Series, config: PreprocessingConfig) -> Pixels | tuple[str, str, str, str]:
    """Prepare one series; an error is sent as its fields, since its keywords cannot be pickled."""
    found = prepare_one(series, config)
    return found if isinstance(found, Pixels) else (found.code, found.reason, found.where, found.fix)


def _to_error(code: str, reason: str, where: str, fix: str) -> ReadError:
    return ReadError(code, reason, where=where, fix=fix)

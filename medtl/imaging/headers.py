"""Read the headers of many files once, in order; in child processes where that takes long."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from medtl.errors import ReadError
from medtl.imaging.in_children import work_in_order
from medtl.imaging.series import unreadable

Found = TypeVar("Found")

# Files of a task: a header takes a fraction of a millisecond, about as long as sending a task.
CHUNK_FILES = 64
# A folder that is read sooner starts no children: those of a large parent take a tenth of a second.
ALONE_SECONDS = 0.5


def read_headers(
    read_one: Callable[[Path], Found], files: Sequence[Path], workers: int | None
) -> tuple[list[Found], list[ReadError]]:
    """Return what read_one found in files, in their order, and the refusals of others.

    read_one is a function of a module. workers: as in work_in_order. Raises TrainingError worker-lost.
    """
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    workers = 1 if len(chunks) < 2 else workers
    results = chain.from_iterable(
        work_in_order(partial(_read_chunk, read_one), chunks, workers, ALONE_SECONDS)
    )
    found: list[Found] = []
    refusals: list[ReadError] = []
    for result in results:
        refusals.append(result) if isinstance(result, ReadError) else found.append(result)
    return found, refusals


def _read_chunk(read_one: Callable[[Path], Found], files: Sequence[Path]) -> list[Found | ReadError]:
    return [_read_or_refuse(read_one, path) for path in files]


def _read_or_refuse(read_one: Callable[[Path], Found], path: Path) -> Found | ReadError:
    try:
        return read_one(path)
    except ReadError as error:
        return error
    except OSError as error:
        return unreadable(path, error)

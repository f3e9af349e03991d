"""Results of many tasks in order: in this process, or in child processes where the tasks take long.

Threads would not help: parsing headers and the transforms' bookkeeping are Python, which runs one at a time.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import current_process, get_context
from typing import Any, TypeVar

from medtl.errors import TrainingError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A bound on memory: each holds what it works on, and two tasks are under way for each.
MOST_CHILDREN = 16
PARENT_CHECK_SECONDS = 0.5

# Options of mallopt(3), and the largest values that they take, in bytes, newer and older.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = (2**31 - 1, 2**25)


def work_in_order(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int | None, patience: float
) -> Generator[Result, None, None]:
    """Yield task(item) of each item, in order.

    workers: 1 stays in this process, more are so many children; None takes a child for each processor once
    `patience` seconds have passed and more is left than was done. Items and results can be pickled; the task
    is not: children have it from this process, with all that it holds, as a network. Raises TrainingError
    worker-lost where a child was ended.
    """
    count = _usable_processors() if workers is None else workers
    patience = patience if workers is None else 0.0
    started, done = time.monotonic(), 0
    while done < len(items) and (
        count <= 1 or time.monotonic() - started < patience or len(items) - done < done
    ):
        yield task(items[done])
        done += 1
    if done < len(items):
        yield from _work_in_children(task, items[done:], min(count, len(items) - done))


def _usable_processors() -> int:
    """Return how many children pay: none where forking is not safe, as with macOS's libraries, or allowed."""
    if sys.platform != "linux" or current_process().daemon:
        return 1
    return min(MOST_CHILDREN, len(os.sched_getaffinity(0)))


def _work_in_children(task: Callable[[Item], Result], items: Sequence[Item], count: int) -> Iterator[Result]:
    pool = ProcessPoolExecutor(count, get_context("fork"), _begin_child, (os.getpid(), task))
    try:
        yield from in_order(lambda item: pool.submit(_do, item), items, 2 * count)
    except BrokenProcessPool as error:
        reason = "a process that reads images was ended; memory may have run out"
        fix = "free memory and start again: it goes on where it was"
        raise TrainingError("worker-lost", reason, fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


_task: Callable[[Any], Any] | None = None


def _do(item: Any) -> Any:
    assert _task is not None
    return _task(item)


def _begin_child(parent: int, task: Callable[[Any], Any]) -> None:
    """Leave the terminal, the threads and the signals of the parent to the parent."""
    global _task
    _task = task
    gc.freeze()  # what the parent holds is not walked here: each page that is touched would be copied
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar's hold locks of its thread
    keep_freed_memory()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent has gone, however it went."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def in_order(
    submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """Yield the results of items in order, with at most `most` that are submitted and not yet taken."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(submit(item))
    while waiting:
        yield waiting.popleft().result()


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that were freed, where it is the C library.

    By default it gives them back, and the kernel clears each page again for the next batch: a million page
    faults in 12 steps of EfficientNet-Lite0, a third of their time; a 3D network took a third less time, too.
    Whoever calls this holds what the largest task has needed.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            any(libc.mallopt(option, value) for value in LARGEST)

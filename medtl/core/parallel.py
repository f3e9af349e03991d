"""Results of many tasks in order: in this process, or in child processes where the tasks take long.

Threads would not help: parsing headers and the transforms' bookkeeping are Python, which runs one at a time.

On Linux children are forked. Elsewhere they are spawned, which takes seconds, needs a task that is pickled,
and runs the caller's script once more: only under the command line, whose script guards against that.
"""

import ctypes
import gc
import multiprocessing
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
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import psutil

from medtl.errors import TrainingError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A bound on memory: each child holds what it works on, and two tasks are under way for each.
MOST_CHILDREN = 16
# A spawned child imports all that the task needs.
SPAWN_SECONDS = 10.0

# Options of mallopt(3), and the largest values that they take, in bytes, newer and older.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = (2**31 - 1, 2**25)

# Set by a main script that does nothing when it is imported: children may be spawned.
may_spawn = False


def work_in_order(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int | None, patience: float
) -> Generator[Result, None, None]:
    """Yield task(item) of each item, in order.

    workers: 1 stays in this process, more are so many children; None takes a child for each processor once
    `patience` seconds have passed and more is left than was done. Items and results can be pickled; the task
    need not be, and then children are forked or none. Raises TrainingError worker-lost where a child was
    killed.
    """
    method = _start_method(task)
    if method is None:
        workers = 1
    count = min(MOST_CHILDREN, usable_processors()) if workers is None else workers
    patience = 0.0 if workers is not None else patience + SPAWN_SECONDS * (method == "spawn")
    started, done = time.monotonic(), 0
    while done < len(items) and (
        count <= 1 or time.monotonic() - started < patience or len(items) - done < done
    ):
        yield task(items[done])
        done += 1
    if done < len(items):
        yield from _work_in_children(task, items[done:], min(count, len(items) - done), method)


def usable_processors() -> int:
    """Return how many processors this process may use."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def _start_method(task: Callable) -> str | None:
    """Return how children are started for a task, None where they cannot be."""
    if multiprocessing.current_process().daemon:  # it may have none
        return None
    chosen = multiprocessing.get_start_method(allow_none=True)
    if sys.platform == "linux" and hasattr(os, "fork") and chosen != "spawn":
        return "fork"
    if may_spawn:
        with suppress(Exception):  # a network of another library may raise anything
            ForkingPickler.dumps(task)
            return "spawn"
    return None


def _work_in_children(
    task: Callable[[Item], Result], items: Sequence[Item], count: int, method: str | None
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(method), _begin_child, (task,))
    try:
        yield from in_order(lambda item: pool.submit(_do, item), items, 2 * count)
    except BrokenProcessPool as error:
        reason = "a process that reads images was killed; memory may have run out"
        fix = "free memory and start again: it resumes where it was"
        raise TrainingError("worker-lost", reason, fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


_task: Callable[[Any], Any] | None = None


def _do(item: Any) -> Any:
    assert _task is not None
    return _task(item)


def _begin_child(task: Callable[[Any], Any]) -> None:
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
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
    A process that calls this holds what its largest task has needed.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            any(libc.mallopt(option, value) for value in LARGEST)

"""Time what may compute scores, as scoring will run it: two ways of a computation -> which is faster."""

import time
from collections.abc import Callable

ROUNDS = 5


def least_seconds(run: Callable[[], object]) -> float:
    """Return the processor's seconds of the fastest of ROUNDS runs, after one that warms up."""
    run()
    return min(_seconds(run) for _ in range(ROUNDS))


def _seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started

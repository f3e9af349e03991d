"""Waiting for events; and how slow this machine is, for the few tests that promise seconds."""

import hashlib
import multiprocessing
import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 900.0  # seconds; no event takes nearly as long: it only ends what hangs
QUIET_SECONDS = 0.15  # for the yardstick below, on the two cores that README's figures are from

Process = subprocess.Popen[Any] | multiprocessing.process.BaseProcess


def wait_until(holds: Callable[[], bool], process: Process | None = None) -> None:
    """Return once something holds; fail where it never does, or the process that would do it has ended."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert process is None or _runs(process) or holds(), "the process ended before it happened"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def _runs(process: Process) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def slowness(clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many times as long as on README's machine, when quiet, a fixed piece of work takes now."""
    started = clock()
    digest = b""
    for number in range(200_000):
        digest = hashlib.sha256(digest + str(number).encode()).digest()
    return max(1.0, (clock() - started) / QUIET_SECONDS)

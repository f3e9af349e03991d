"""FRAMES -> stored values, in child processes: a decoder that aborts, hangs or grows costs one file.

Some decoders end their process on malformed data (gdcm), or panic past any `except` (pylibjpeg-rle). A child
starts when it is first needed and serves until it dies or is killed for taking too long.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.core.parallel import usable_processors

# Seconds for a frame: some, and more for a large one. A mammogram of 12 million pixels takes about four.
BASE_SECONDS = 8.0
SECONDS_PER_VALUE = 2e-6
# A child loads its libraries before its first reply.
START_SECONDS = 60.0

MOST_THREADS = 4

CHILD = (sys.executable, "-P", "-m", "medtl.imaging.dicom.decoder_process")


class FrameRefusedError(Exception):
    """A decoder raised on a frame: `args[0]` is the name of its exception."""


class DecoderLostError(Exception):
    """A decoder ended its process, or took too long: `args[0]` says which."""


class DecoderChild:
    """One child process that is ready to decode, for one thread at a time. Raises DecoderLostError."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_child_environment()
        )
        with self._within(START_SECONDS):
            self._read_line()

    def decode(self, frame: bytes, request: dict[str, Any], seconds: float) -> NDArray:
        """Return the values of a frame. Raises FrameRefusedError; DecoderLostError, and ends the child."""
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None and replies is not None
        with self._within(seconds):
            requests.write(json.dumps({**request, "size": len(frame)}).encode() + b"\n")
            requests.write(frame)
            requests.flush()
            reply = json.loads(self._read_line())
            if "error" in reply:
                raise FrameRefusedError(reply["error"])
            values = np.empty(reply["shape"], np.dtype(reply["dtype"]))
            if replies.readinto(values.reshape(-1).view(np.uint8)) < values.nbytes:  # type: ignore[attr-defined]
                raise EOFError
        return values

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Kill the process after so many seconds, and close it where it ends before its reply does."""
        overtime = threading.Timer(seconds, self.process.kill)
        overtime.start()
        try:
            yield
        except (BrokenPipeError, EOFError) as error:
            late = not overtime.is_alive()
            self.close()
            reason = f"took more than {seconds:.0f} s" if late else "ended its process"
            raise DecoderLostError(reason) from error
        finally:
            overtime.cancel()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _read_line(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError
        return line


def _child_environment() -> dict[str, str]:
    """Let OpenJPEG use some processors for a frame, but one where several processes read side by side.

    torchrun and Ray, which start such processes, set OMP_NUM_THREADS for each. MALLOC_ARENA_MAX: one arena a
    thread would use up the address space that a child is limited to.
    """
    requested = re.match(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))  # OpenMP takes "4,2", too
    allowed = int(requested[0]) if requested else usable_processors()
    threads = 1 if parent_process() else min(MOST_THREADS, allowed)
    return {**os.environ, "OPJ_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "1"}


class DecoderPool:
    """Idle children, and a limit on those at work."""

    def __init__(self, most: int, command: Sequence[str]) -> None:
        self.owner, self.command = os.getpid(), command
        self.idle: list[DecoderChild] = []
        self.places = threading.BoundedSemaphore(most)

    def decode(self, frame: bytes, request: dict[str, Any], seconds: float) -> NDArray:
        """Decode with an idle child, or with a new one. Raises as DecoderChild.decode does."""
        with self.places:
            try:  # not a question first: other threads take children, too
                child = self.idle.pop()
            except IndexError:
                child = DecoderChild(self.command)
            try:
                return child.decode(frame, request, seconds)
            finally:
                if child.process.poll() is None:
                    self.idle.append(child)

    def close(self) -> None:
        """End all idle children."""
        while self.idle:
            self.idle.pop().close()


_pools: dict[Sequence[str], DecoderPool] = {}
_starting = threading.Lock()


def pool_of(command: Sequence[str]) -> DecoderPool:
    """Return this process's pool of children that a command starts."""
    with _starting:
        pool = _pools.get(command)
        if pool is None or pool.owner != os.getpid():  # a forked process shares no pipe with its parent
            pool = _pools[command] = DecoderPool(os.cpu_count() or 1, command)
            atexit.register(pool.close)
    return pool


def decode_frame(frame: bytes, request: dict[str, Any], values: int) -> NDArray:
    """Decode one frame, without its encapsulation, to stored values (H, W) or (H, W, 3); YBR becomes RGB.

    request: transfer_syntax, plugin, and the elements that pydicom's decoder needs; values: their number, by
    which the time is limited. Raises FrameRefusedError, DecoderLostError.
    """
    return pool_of(CHILD).decode(frame, request, BASE_SECONDS + SECONDS_PER_VALUE * values)

"""Ctrl-C and SIGTERM: long work stops after its current step; a second signal stops it at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from medtl.core.progress import StoppedError
from medtl.errors import AlreadyReportedError

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Ask it after each step: has the user asked to stop? The work asks `stop()`, inside `with stop`.

    Until the work first asks, and at the second signal, a signal raises KeyboardInterrupt with its number.
    of_many: this is one of several processes that train together. Their launcher, torchrun, may send each a
    signal that it has received already, so that a second one changes nothing. It also sends SIGTERM to those
    that are left once one has ended: they ignore it after the block, and end by themselves.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.of_many = False
        self._asked = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            ignored = self.of_many and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        if isinstance(error, StoppedError | AlreadyReportedError):
            error.exit_code = self.exit_code if self.received else error.exit_code

    def __call__(self) -> bool:
        """Return whether a signal was received."""
        self._asked = True
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child
            # A terminal sends Ctrl-C to loaders too, whose batches the last step may still need.
            if number == signal.SIGTERM or not self._asked:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        at_once = not self._asked if self.received is None else not self.of_many
        self.received = number
        if at_once:
            raise KeyboardInterrupt(number)

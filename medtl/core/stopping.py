"""Ctrl-C and SIGTERM during training: the first is answered after the current step, a second at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from medtl.core.progress import StoppedError
from medtl.errors import AlreadyReportedError

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A question that training asks after each step: has the user asked to stop?

    Until it is first asked, and at the second signal, a signal raises KeyboardInterrupt: nobody would answer.
    of_many: this is one of several processes that train together. A signal to all may reach each of them
    again through torchrun, which kills whoever lingers: a second one changes nothing. It also sends SIGTERM
    to all that are left once one has ended: after the block, where a process ends by itself, it heeds none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.of_many = False
        self._answered = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            deaf = self.of_many and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if deaf else handler)
        if isinstance(error, StoppedError | AlreadyReportedError):
            error.exit_code = self.exit_code if self.received else error.exit_code

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        self._answered = True
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._receive_in_child(number)
            return
        first = self.received is None
        waits = self._answered if first else self.of_many
        self.received = number
        if not waits:
            raise KeyboardInterrupt(number)

    def _receive_in_child(self, number: int) -> None:
        """A terminal sends Ctrl-C to the loaders too, whose batches the last step may still need."""
        if number == signal.SIGINT and self._answered:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

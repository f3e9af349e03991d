"""Long work: what it reports to its watcher, and how it stops.

After Ctrl-C and SIGTERM it stops after its current step; a second signal stops it at once.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from medtl.errors import AlreadyReportedError, TrainingError

HANDLED = (signal.SIGINT, signal.SIGTERM)
RESUME_RUN = "resume with the same command and --resume"


class Watcher:
    """What a front end may show while long work runs: it overrides what it shows. This one shows nothing."""

    def note(self, label: str, text: str) -> None:
        """Show the user a line under a label."""

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        """Show that a training.schedule.Stage begins; plan: the CachePlan of its frozen prefix."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show an epoch that is done; `row` is its line of history.csv."""


SILENT = Watcher()


def note_all(watcher: Watcher, *notes: Sequence[str]) -> None:
    """Show one line for each note."""
    for note in (note for group in notes for note in group):
        watcher.note("note", note)


class StoppedError(TrainingError):
    """Work stopped because it was asked to; it can be resumed."""

    exit_code = 130  # StopSignal sets that of its signal


def never() -> bool:
    """Return False: no stop is asked for."""
    return False


def stopped(when: str, where: Path | str, fix: str = "run the same command to resume") -> StoppedError:
    """Return the error that says where a job stopped, and how to resume it."""
    return StoppedError("interrupted", f"stopped {when}", where=where, fix=fix)


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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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

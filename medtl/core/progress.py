"""What long work reports to its watcher, and the error by which it stops on request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medtl.errors import TrainingError


class StageFacts(Protocol):
    """What a watcher sees of a stage of training; groups: how many layer groups it unfreezes."""

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> int: ...

    @property
    def epochs(self) -> int: ...


class PlanFacts(Protocol):
    """What a watcher sees of the frozen prefix of a stage; step 0: there is none."""

    @property
    def step(self) -> int: ...

    @property
    def cached(self) -> bool: ...

    @property
    def reason(self) -> str: ...


class Watcher(Protocol):
    """What a front end may show while long work runs."""

    def note(self, label: str, text: str) -> None:
        """Show the user a line under a label."""

    def stage(self, number: int, of: int, stage: StageFacts, plan: PlanFacts) -> None:
        """Show that a stage begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show an epoch that is done; `row` is its line of history.csv."""


class Unwatched:
    """Shows nothing: the watcher of processes that do not lead."""

    def note(self, label: str, text: str) -> None: ...

    def stage(self, number: int, of: int, stage: StageFacts, plan: PlanFacts) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...


SILENT = Unwatched()


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


def stopped(when: str, run: Path) -> StoppedError:
    """Return the error that says where a run stopped, and how to resume it."""
    fix = "resume with the same command and --resume"
    return StoppedError("interrupted", f"stopped {when}", where=run, fix=fix)

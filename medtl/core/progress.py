"""What a fit tells whoever watches it, and how it is asked to stop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medtl.errors import TrainingError


class StageFacts(Protocol):
    """What a watcher is told of a stage of training; groups: how many layer groups it unfreezes."""

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> int: ...

    @property
    def epochs(self) -> int: ...


class PlanFacts(Protocol):
    """What a watcher is told of the frozen prefix of a stage; step 0: there is none."""

    @property
    def step(self) -> int: ...

    @property
    def cached(self) -> bool: ...

    @property
    def reason(self) -> str: ...


class Watcher(Protocol):
    """What a front door may want to show while a fit runs."""

    def note(self, label: str, text: str) -> None:
        """Something that the user should know."""

    def stage(self, number: int, of: int, stage: StageFacts, plan: PlanFacts) -> None:
        """A stage begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Something within a stage has come to `done` of `total`."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; `row` is its line of history.csv."""


class Unwatched:
    """Shows nothing: the watcher of processes that do not lead."""

    def note(self, label: str, text: str) -> None: ...

    def stage(self, number: int, of: int, stage: StageFacts, plan: PlanFacts) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...


SILENT = Unwatched()


def tell(watcher: Watcher, *notes: Sequence[str]) -> None:
    """Pass on one line for each note."""
    for note in (note for group in notes for note in group):
        watcher.note("note", note)


class StoppedError(TrainingError):
    """Training was asked to stop; it goes on from there when it is resumed."""

    exit_code = 130  # StopSignal sets that of its signal


def never() -> bool:
    """Ask for no stop."""
    return False


def stopped(when: str, run: Path) -> StoppedError:
    """Return the error that says where a run was stopped, and how it goes on."""
    fix = "go on with the same command and --resume"
    return StoppedError("interrupted", f"stopped {when}", where=run, fix=fix)

"""What long work reports to its watcher, and the error by which it stops on request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.errors import TrainingError


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


def stopped(when: str, run: Path) -> StoppedError:
    """Return the error that says where a run stopped, and how to resume it."""
    fix = "resume with the same command and --resume"
    return StoppedError("interrupted", f"stopped {when}", where=run, fix=fix)

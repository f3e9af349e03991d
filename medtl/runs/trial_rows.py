"""What the trials of a search came to: one row each, ranked, in words, and as a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.imaging.storage import write_csv
from medtl.prediction.evaluation import Interval


@dataclass(frozen=True)
class TrialRow:
    """One trial: state is complete, pruned, failed (`fault` says why) or running.

    score: the metric with its interval on validation data, where complete. recipe: it is the recipe itself.
    seconds: what the last process that worked on it took; epochs: how many it trained.
    """

    number: int
    state: str
    score: Interval | None
    epochs: int
    seconds: float
    values: Mapping[str, Any]
    recipe: bool = False
    fault: str = ""


def rank_rows(rows: Sequence[TrialRow], sign: int) -> tuple[TrialRow, ...]:
    """Return the finished trials, best first; of equal ones the earlier. sign: -1 where low is good."""
    done = [(-sign * row.score.value, row.number, row) for row in rows if row.score]
    return tuple(row for _, _, row in sorted(done, key=lambda entry: entry[:2]))


def describe_row(row: TrialRow, metric: str) -> str:
    """Say in one line what a trial came to and what its values were."""
    if row.score:
        result = f"{metric} {row.score.value:.3f}"
    elif row.fault:
        result = f"failed: {row.fault}"
    else:
        result = f"pruned after {row.epochs} epochs"
    return f"{result}, {row.seconds:.1f} s; {describe_values(row)}"


def describe_values(row: TrialRow) -> str:
    """Say a trial's values, each under the last part of its key."""
    shown = [f"{key.rsplit('.', 1)[-1]} {_text(value)}" for key, value in row.values.items()]
    return ("the recipe itself: " if row.recipe else "") + ", ".join(shown)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_table(path: Path, rows: Sequence[TrialRow], metric: str, keys: Sequence[str]) -> None:
    """Write one line a trial. keys: those of the values, a column each."""
    header = ("trial", "state", metric, "low", "high", "epochs", "seconds", *keys, "fault")
    write_csv(path, [header, *(_cells(row, keys) for row in rows)])


def _cells(row: TrialRow, keys: Sequence[str]) -> list[str]:
    interval = (row.score.value, row.score.low, row.score.high) if row.score else (math.nan,) * 3
    numbers = ["" if math.isnan(number) else repr(number) for number in (*interval, row.seconds)]
    values = [json.dumps(row.values[key]).strip('"') if key in row.values else "" for key in keys]
    return [str(row.number), row.state, *numbers[:3], str(row.epochs), numbers[3], *values, row.fault]

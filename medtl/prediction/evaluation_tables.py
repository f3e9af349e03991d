"""Write an evaluation as tables for a spreadsheet: a row for each number, empty where undefined."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medtl.prediction.evaluation import Evaluation
from medtl.prediction.intervals import Interval
from medtl.prediction.subgroups import Grouping
from medtl.prediction.tables import write_table

NUMBERS = ("metric", "value", "low", "high")


def write_metrics(path: Path, evaluation: Evaluation) -> None:
    """Write class, metric, value, low, high; the class is empty for all classes together."""
    found = {**evaluation.metrics, "auroc_bootstrap": evaluation.auroc_bootstrap}
    rows: list[list[str | float]] = [["", *row] for row in _rows(found)]
    for name, by_metric in evaluation.per_class.items():
        rows += [[name, *row] for row in _rows(by_metric)]
    write_table(path, [["class", *NUMBERS], *rows])


def write_subgroups(path: Path, groupings: Sequence[Grouping]) -> None:
    """Write attribute, group, samples, patients, reason, metric, value, low, high; the gap comes last."""
    rows: list[list[str | float]] = []
    for grouping in groupings:
        for group in grouping.groups:
            size: list[str | float] = [group.samples, group.patients, group.reason]
            rows += [[grouping.attribute, group.name, *size, *row] for row in _rows(group.metrics)]
        gap = _rows({"auroc_gap": grouping.gap})[0]
        rows.append([grouping.attribute, grouping.worst, "", "", "", *gap])
    write_table(path, [["attribute", "group", "samples", "patients", "reason", *NUMBERS], *rows])


def _rows(found: Mapping[str, Interval]) -> list[list[str | float]]:
    return [[name, interval.value, interval.low, interval.high] for name, interval in found.items()]

"""Compare runs that were judged on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.core.files import write_csv, write_json
from medtl.core.progress import Watcher, note_all
from medtl.data.task import Task
from medtl.errors import CheckpointError, ConfigError
from medtl.evaluation.comparison import COMPARED, Candidate, Compared, align, compare, to_json
from medtl.evaluation.learning_curves import (
    CurvePoint,
    curves_json,
    has_more_of_scratch,
    learning_curves,
    repeated_seeds,
    worth_in_labels,
    worth_json,
)
from medtl.evaluation.predictions import FILE, read_predictions
from medtl.report.comparison_page import write_comparison_page
from medtl.training.run_folder import RunFolder

RECIPE = ("backbone", "schedule", "seed", "label_budget", "labels", "labels_available")
COLUMNS = ("run", "schedule", "labels", "seed", "metric", "value", "low", "high")
DIFFERENCE_COLUMNS = ("difference", "difference_low", "difference_high", "p", "p_holm")


@dataclass(frozen=True)
class CompareOutcome:
    """What a comparison came to: comparison.json's content and the page."""

    content: Mapping[str, Any]
    page: Path


@dataclass(frozen=True, eq=False)
class _Judged:
    """One folder of medtl train or evaluate. part: of the data that its predictions are for."""

    task: Task
    part: str
    candidate: Candidate


def compare_runs(
    runs: Sequence[Path],
    out: Path,
    watcher: Watcher,
    *,
    reference: str | None = None,
    common: bool = False,
) -> CompareOutcome:
    """Compare folders of medtl train or evaluate into OUT: comparison.json, comparison.csv, comparison.html.

    reference: the folder or its name that the others are compared with, by default the first. common: compare
    on the samples that all have. Raises CheckpointError in one of its kinds, ConfigError config-value.
    """
    names = name_runs(runs)
    base = _find_reference(reference, runs, names)
    judged = [_read(run, name) for run, name in zip(runs, names, strict=True)]
    task = _common_task(judged)
    candidates = align([one.candidate for one in judged], common=common)
    notes = _notes(judged, candidates)
    note_all(watcher, notes)
    watcher.progress("comparing", 0, len(candidates))
    found = compare(candidates, task, base)
    curves = learning_curves(found)
    repeats = _repeat_notes(found) if curves else []
    note_all(watcher, repeats)
    content = _content(found, curves, task, base, [*notes, *repeats])
    write_json(out / "comparison.json", content)
    write_csv(out / "comparison.csv", [COLUMNS + DIFFERENCE_COLUMNS, *_rows(content["runs"])])
    return CompareOutcome(content, write_comparison_page(out, content))


def name_runs(runs: Sequence[Path]) -> list[str]:
    """Return a name for each folder: as many of its last parts as tell them apart.

    Raises ConfigError config-value for a folder that is named twice.
    """
    places = [run.resolve() for run in runs]
    if len(set(places)) < len(places):
        twice = next(run for run, place in zip(runs, places, strict=True) if places.count(place) > 1)
        raise ConfigError("config-value", "the folder is named twice", where=twice, fix="name it once")
    for depth in range(1, max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _find_reference(reference: str | None, runs: Sequence[Path], names: Sequence[str]) -> str:
    if reference is None:
        return names[0]
    for run, name in zip(runs, names, strict=True):
        if reference in (name, str(run)) or Path(reference).resolve() == run.resolve():
            return name
    fix = f"one of {', '.join(names)}"
    raise ConfigError("config-value", "is none of the runs", where=f"--reference {reference}", fix=fix)


def _read(run: Path, name: str) -> _Judged:
    """Read what medtl train or evaluate left. Raises CheckpointError run-missing, predictions-missing."""
    folder = RunFolder(run)
    if not folder.metrics.is_file():
        fix = "give folders of medtl train or medtl evaluate"
        raise CheckpointError("run-missing", "no metrics.json here", where=run, fix=fix)
    metrics = folder.read_json(folder.metrics)
    if not (run / FILE).is_file():
        fix = "judge the run again with medtl evaluate"
        raise CheckpointError("predictions-missing", f"no {FILE} here", where=run, fix=fix)
    task, thresholds, recipe = _plain_facts(run, metrics)
    candidate = Candidate(name, read_predictions(run / FILE, task), thresholds, recipe)
    return _Judged(task, str(metrics.get("part", "val")), candidate)


def _plain_facts(run: Path, metrics: Mapping[str, Any]) -> tuple[Task, tuple[float, ...], dict[str, Any]]:
    """Return the task, thresholds and recipe of metrics.json; an empty recipe where it is not all there."""
    try:
        task = Task(metrics["task"]["kind"], tuple(map(str, metrics["task"]["classes"])))
        thresholds = tuple(map(float, metrics["thresholds"]))
        recipe = dict(metrics.get("recipe") or {})
    except (KeyError, TypeError, ValueError) as error:
        reason = "its metrics.json does not say what was judged"
        fix = "judge the run again with medtl evaluate"
        raise CheckpointError("checkpoint-damaged", reason, where=run, fix=fix) from error
    return task, thresholds, recipe if recipe.keys() >= set(RECIPE) else {}


def _common_task(judged: Sequence[_Judged]) -> Task:
    first = judged[0]
    for other in judged[1:]:
        if other.task != first.task:
            reason = f"{first.candidate.name} and {other.candidate.name} tell other classes apart"
            raise CheckpointError("runs-differ", reason, fix="compare runs of one task")
    return first.task


def _notes(judged: Sequence[_Judged], aligned: Sequence[Candidate]) -> list[str]:
    """Return a line for each thing that the reader should know of what is compared."""
    notes = []
    if any(one.part == "val" for one in judged):
        notes.append(
            "validation samples, which also chose each run's checkpoint and thresholds: the numbers flatter"
        )
    kept = len(aligned[0].predictions.sample_ids)
    most = max(len(one.candidate.predictions.sample_ids) for one in judged)
    if kept < most:
        notes.append(f"compared on the {kept} samples that all runs have, of up to {most}")
    return notes


def _repeat_notes(found: Sequence[Compared]) -> list[str]:
    return [
        f"{name} has schedule, labels and seed of {earlier}: the learning curves leave it out"
        for name, earlier in repeated_seeds(found).items()
    ]


def _content(
    found: Sequence[Compared],
    curves: Mapping[str, Sequence[CurvePoint]],
    task: Task,
    base: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    evaluation = found[0].evaluation
    return {
        "reference": base,
        "task": {"kind": task.kind, "classes": list(task.classes)},
        "counts": {"samples": evaluation.samples, "patients": evaluation.patients},
        "confidence": evaluation.confidence,
        "resamples": evaluation.resamples,
        "adjusted_for": len(found) - 1,
        "notes": list(notes),
        "runs": to_json(found),
        "curves": curves_json(curves),
        "worth": worth_json(worth_in_labels(curves, evaluation.confidence)),
        "scratch_has_more": has_more_of_scratch(curves),
    }


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str | float]]:
    rows: list[list[str | float]] = []
    for run in runs:
        recipe = [str(run["recipe"].get(key, "")) for key in ("schedule", "labels", "seed")]
        for name in COMPARED:
            numbers = _cells(run["metrics"][name], ("value", "low", "high"))
            keys = ("value", "low", "high", "p", "p_holm")
            rows.append(
                [run["name"], *recipe, name, *numbers, *_cells(run["differences"].get(name, {}), keys)]
            )
    return rows


def _cells(found: Mapping[str, float | None], keys: Sequence[str]) -> list[float]:
    """Return numbers, NaN (an empty cell) for what is undefined."""
    return [float("nan") if found.get(key) is None else float(found[key]) for key in keys]  # type: ignore[arg-type]

"""Compare runs evaluated on the same samples: predictions -> metrics, differences, learning curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.core.files import PathLike, write_csv, write_json
from medtl.core.progress import SILENT, Watcher, note_all
from medtl.data.task import Task
from medtl.errors import CheckpointError, ConfigError
from medtl.evaluation import comparison
from medtl.evaluation.comparison import COMPARED, Candidate, align
from medtl.evaluation.learning_curves import (
    curves_json,
    has_more_of_scratch,
    learning_curves,
    repeated_seeds,
    worth_in_labels,
)
from medtl.evaluation.predictions import FILE, read_predictions
from medtl.report.comparison_page import write_comparison_page
from medtl.training.run_folder import RunFolder

RECIPE = ("backbone", "schedule", "seed", "label_budget", "labels", "labels_available")
INTERVAL = ("value", "low", "high")
COLUMNS = (
    *("run", "schedule", "labels", "seed", "metric", *INTERVAL),
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
)


@dataclass(frozen=True)
class CompareOutcome:
    """The content of comparison.json, and the page."""

    content: Mapping[str, Any]
    page: Path


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """A folder that train or evaluate wrote. part: which part of the data its predictions are for."""

    task: Task
    part: str
    candidate: Candidate


def compare(
    runs: Sequence[PathLike],
    out: PathLike,
    *,
    reference: str | None = None,
    common: bool = False,
    watcher: Watcher = SILENT,
) -> CompareOutcome:
    """Compare folders that train or evaluate wrote; write comparison.json, .csv and a page to `out`.

    reference: the folder that the others are compared with, or its name; by default the first. common:
    compare on the samples that all runs have. Raises CheckpointError, ConfigError config-value.

    >>> import medtl
    >>> outcome = medtl.compare(["runs/xray", "runs/other"], "comparison")
    >>> outcome.content["reference"]
    'xray'
    """
    folders, out = [Path(run) for run in runs], Path(out)
    names = name_runs(folders)
    base = _find_reference(reference, folders, names)
    evaluated = [_read(run, name) for run, name in zip(folders, names, strict=True)]
    first = evaluated[0]
    for other in evaluated[1:]:
        if other.task != first.task:
            reason = f"{first.candidate.name} and {other.candidate.name} have different classes"
            raise CheckpointError("runs-differ", reason, fix="compare runs of one task")
    candidates = align([one.candidate for one in evaluated], common=common)
    notes = list(_notes(evaluated, candidates))
    note_all(watcher, notes)
    watcher.progress("comparing", 0, len(candidates))
    compared = comparison.compare(candidates, first.task, base)
    curves = learning_curves(compared)
    repeats = [
        f"{name} has the schedule, labels and seed of {earlier}: the learning curves leave it out"
        for name, earlier in (repeated_seeds(compared) if curves else {}).items()
    ]
    note_all(watcher, repeats)
    evaluation = compared[0].evaluation
    content: dict[str, Any] = {
        "reference": base,
        "task": {"kind": first.task.kind, "classes": list(first.task.classes)},
        "counts": {"samples": evaluation.samples, "patients": evaluation.patients},
        "confidence": evaluation.confidence,
        "resamples": evaluation.resamples,
        "adjusted_for": len(compared) - 1,
        "notes": [*notes, *repeats],
        "runs": comparison.to_json(compared),
        "curves": curves_json(curves),
        "worth": worth_in_labels(curves, evaluation.confidence),
        "scratch_has_more": has_more_of_scratch(curves),
    }
    write_json(out / "comparison.json", content)
    write_csv(out / "comparison.csv", [COLUMNS, *_rows(content["runs"])])
    return CompareOutcome(content, write_comparison_page(out, content))


def name_runs(runs: Sequence[Path]) -> list[str]:
    """Return a name for each folder: as many of its last parts as distinguish it from the others.

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


def _read(run: Path, name: str) -> _Evaluated:
    """Read what train or evaluate wrote; its recipe is empty where metrics.json does not have all of it.

    Raises CheckpointError run-missing, predictions-missing, checkpoint-damaged.
    """
    folder = RunFolder(run)
    if not folder.metrics.is_file():
        fix = "give folders of medtl train or medtl evaluate"
        raise CheckpointError("run-missing", "no metrics.json here", where=run, fix=fix)
    metrics = folder.read_json(folder.metrics)
    fix = "evaluate the run again with medtl evaluate"
    if not (run / FILE).is_file():
        raise CheckpointError("predictions-missing", f"no {FILE} here", where=run, fix=fix)
    try:
        task = Task(metrics["task"]["kind"], tuple(map(str, metrics["task"]["classes"])))
        thresholds = tuple(map(float, metrics["thresholds"]))
        recipe = dict(metrics.get("recipe") or {})
    except (KeyError, TypeError, ValueError) as error:
        reason = "its metrics.json does not say what was evaluated"
        raise CheckpointError("checkpoint-damaged", reason, where=run, fix=fix) from error
    recipe = recipe if recipe.keys() >= set(RECIPE) else {}
    candidate = Candidate(name, read_predictions(run / FILE, task), thresholds, recipe)
    return _Evaluated(task, str(metrics.get("part", "val")), candidate)


def _notes(evaluated: Sequence[_Evaluated], aligned: Sequence[Candidate]) -> Iterator[str]:
    """Yield a line for each thing that the reader should know of what is compared."""
    if any(one.part == "val" for one in evaluated):
        yield (
            "validation samples, which also chose each run's checkpoint and thresholds: metrics are too "
            "optimistic"
        )
    common = len(aligned[0].predictions.sample_ids)
    most = max(len(one.candidate.predictions.sample_ids) for one in evaluated)
    if common < most:
        yield f"compared on the {common} samples that all runs have, of up to {most}"


def _rows(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str | float]]:
    """Yield a row for each run and metric; what is undefined is NaN, an empty cell."""

    def cells(entry: Mapping[str, float | None], keys: Sequence[str]) -> list[float]:
        values = [entry.get(key) for key in keys]
        return [float("nan") if value is None else float(value) for value in values]

    for run in runs:
        recipe = [str(run["recipe"].get(key, "")) for key in ("schedule", "labels", "seed")]
        for name in COMPARED:
            difference = cells(run["differences"].get(name, {}), (*INTERVAL, "p", "p_holm"))
            yield [run["name"], *recipe, name, *cells(run["metrics"][name], INTERVAL), *difference]

"""Report on a training run: its card, its validation, and the studies in which it was surely wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.core.progress import Watcher
from medtl.data.naming import sample_key, source_name
from medtl.data.task import Task
from medtl.errors import ReadError
from medtl.evaluation.metrics import predict_classes
from medtl.evaluation.predictions import FILE, Predictions, read_predictions
from medtl.imaging.display import make_display
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Series
from medtl.report.model_card import model_card
from medtl.report.run_page import WrongAnswer, write_run_page
from medtl.training.checkpoint import load_finished
from medtl.training.run_folder import RunFolder

WRONG_SHOWN = 12


def report_training(run: Path, out: Path, watcher: Watcher, data: Path | None = None) -> Path:
    """Write the page of a run, and return it. data: the folder it was trained on, to show images from."""
    checkpoint = load_finished(run)
    folder = RunFolder(run)
    metrics = folder.read_json(folder.metrics)
    wrong = None
    if (run / FILE).is_file():
        kept = read_predictions(run / FILE, checkpoint.task)
        wrong = find_wrong(kept, checkpoint.task, checkpoint.header.thresholds or ())[:WRONG_SHOWN]
        if data is not None:
            wrong = list(_with_images(wrong, data, watcher))
    evaluation = metrics.get("split", {}).get("val", {})
    seconds = metrics.get("seconds", {}).get("total")
    return write_run_page(out, model_card(run, checkpoint), evaluation, seconds, wrong)


def find_wrong(kept: Predictions, task: Task, thresholds: Sequence[float]) -> list[WrongAnswer]:
    """Return the validation samples that were answered wrongly, most confident first.

    Confidence is how far the probability of what was said exceeds that of the truth; in multilabel it is that
    of the finding which is furthest off.
    """
    answers = predict_classes(kept.probabilities, thresholds, task.kind)
    judge = _wrong_findings if task.kind == "multilabel" else _wrong_class
    found = [
        judge(kept, task, row, answers[row]) for row, part in enumerate(kept.split) if part in ("", "val")
    ]
    ranked = sorted((pair for pair in found if pair), key=lambda pair: (-pair[0], pair[1].sample_id))
    return [case for _, case in ranked]


def _wrong_class(
    kept: Predictions, task: Task, row: int, answer: NDArray[np.int64]
) -> tuple[float, WrongAnswer] | None:
    said, truth, values = int(answer), int(kept.targets[row]), kept.probabilities[row]
    if said == truth:
        return None
    case = WrongAnswer(kept.sample_ids[row], task.classes[said], task.classes[truth], float(values[said]))
    return float(values[said] - values[truth]), case


def _wrong_findings(
    kept: Predictions, task: Task, row: int, answers: NDArray[np.int64]
) -> tuple[float, WrongAnswer] | None:
    values, truth = kept.probabilities[row], kept.targets[row]
    wrong = np.isfinite(truth) & (answers != truth)
    if not wrong.any():
        return None
    worst = int(np.where(wrong, np.abs(values - truth), -1.0).argmax())
    name, present = task.classes[worst], bool(answers[worst])
    said, label = (name, f"no {name}") if present else (f"no {name}", name)
    sure = float(values[worst] if present else 1 - values[worst])
    return abs(float(values[worst] - truth[worst])), WrongAnswer(kept.sample_ids[row], said, label, sure)


def _with_images(wrong: Sequence[WrongAnswer], data: Path, watcher: Watcher) -> Iterator[WrongAnswer]:
    """Yield each case with its image where it is found in the data; what cannot be read stays without."""
    series = _series_by_id(data)
    for done, case in enumerate(wrong, start=1):
        yield _with_image(case, series.get(case.sample_id))
        watcher.progress("reading", done, len(wrong))


def _with_image(case: WrongAnswer, series: Series | None) -> WrongAnswer:
    if series is None:
        return case
    try:
        display = make_display(read_series(series), longest_side=240)
    except ReadError:
        return case
    return replace(case, image=display.grey, spacing_mm=display.spacing_mm)


def _series_by_id(data: Path) -> dict[str, Series]:
    return {sample_key(source_name(series, data)): series for series in scan(data).series}

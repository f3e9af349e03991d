"""Evaluate the best checkpoint of a fit on validation data, and complete it.

Fit -> calibration, thresholds, prediction sets and OOD check in the checkpoint; predictions and metrics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from medtl.core.files import write_json
from medtl.core.ids import make_generator
from medtl.core.progress import RESUME_RUN, stopped
from medtl.data.task import Sample
from medtl.evaluation.calibration import fit_calibration, to_probabilities
from medtl.evaluation.conformal import fit_floors
from medtl.evaluation.evaluate import Evaluation, evaluate, to_json
from medtl.evaluation.metrics import Floats, Questions
from medtl.evaluation.predictions import FILE, predictions_of, write_predictions
from medtl.evaluation.thresholds import choose_thresholds
from medtl.inference.ood import MOST_SAMPLES, fit_ood
from medtl.inference.predictor import predict_features
from medtl.training.checkpoint import (
    TENSORS,
    Checkpoint,
    CheckpointHeader,
    OodLimits,
    load_checkpoint,
    model_tensors,
    save_checkpoint,
)
from medtl.training.feature_cache.cache import Views
from medtl.training.run_folder import VERSIONED
from medtl.training.trainer import Fit

BATCH = 32
# Whether a run with an evaluation gets an OOD check, which costs a pass over training images.
FitsOod = Callable[[Evaluation], bool]


def finish_fit(
    fit: Fit,
    samples: Sequence[Sample],
    recipe: Mapping[str, Any],
    seconds: Mapping[str, float],
    fits_ood: FitsOod | None,
) -> Evaluation:
    """Calibrate and evaluate the best checkpoint on validation data, complete it, and write metrics.json."""
    run = fit.run_folder
    checkpoint = load_checkpoint(run.root)
    task, truth = checkpoint.task, fit.data.val_targets
    evaluated = [sample for sample in samples if sample.split == "val"]
    patients = [sample.patient_id for sample in evaluated]
    logits, features = _predict_views(checkpoint, fit.data.val, fit)
    calibration, note = fit_calibration(logits, truth, task, fit.config.calibration)
    fit.watcher.note("note", note)
    probabilities = to_probabilities(logits, task.kind, calibration)
    questions = Questions(probabilities, truth, task, patients)
    thresholds = choose_thresholds(questions)
    evaluation = evaluate(questions, thresholds)
    checked = fits_ood is None or fits_ood(evaluation)
    limits, tensors = _fit_ood(checkpoint, fit, features, samples) if checked else (None, {})
    completed = {
        "thresholds": tuple(thresholds),
        "calibration": calibration,
        "conformal": fit_floors(questions),
        "ood": limits,
    }
    header = checkpoint.header.model_copy(update=completed)
    write_predictions(run.root / FILE, task, predictions_of(evaluated, task, probabilities, logits))
    save_checkpoint(run.best, header, {"model": model_tensors(checkpoint.classifier), **tensors})
    write_json(run.metrics, {**_metrics(fit, evaluation, header, seconds), "recipe": recipe})
    run.log("finished", seconds=round(seconds["total"], 1))
    return evaluation


def _fit_ood(
    checkpoint: Checkpoint, fit: Fit, held_out: Floats, samples: Sequence[Sample]
) -> tuple[OodLimits | None, dict[str, dict[str, Tensor]]]:
    """Measure what training images are like; held_out: features of the validation images.

    Returns the checkpoint's limits and their tensor file, None and nothing where they cannot be measured.
    """
    views = fit.data.train
    drawn = make_generator(fit.config.seed, "screening").permutation(len(views))[:MOST_SAMPLES]
    rows = replace(views, rows=views.rows[np.sort(drawn)])
    _, features = _predict_views(checkpoint, rows, fit)
    trained_on = {views.dataset.sample_ids[row] for row in views.rows}
    series = [sample.series for sample in samples if sample.sample_id in trained_on]
    fitted = fit_ood(features, held_out, series)
    return (fitted[0], {TENSORS: fitted[1]}) if fitted else (None, {})


def _predict_views(checkpoint: Checkpoint, views: Views, fit: Fit) -> tuple[Floats, Floats]:
    """Return logits and pooled features of all samples, without augmentation."""
    parts = []
    for start in range(0, len(views), BATCH):
        if fit.stop():
            raise stopped("while the best epoch was evaluated", fit.run_folder.root, RESUME_RUN)
        batch = np.arange(start, min(start + BATCH, len(views)))
        parts.append(predict_features(checkpoint, views.read(batch, 0)))
    logits, features = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(features)


def _metrics(
    fit: Fit, evaluation: Evaluation, header: CheckpointHeader, seconds: Mapping[str, float]
) -> dict[str, Any]:
    stages = [
        {**stage.model_dump(mode="json"), "cached": plan.cached, "why": plan.reason}
        for stage, plan in zip(fit.stages, fit.plans, strict=True)
    ]
    return {
        "task": {"kind": header.task_kind, "classes": list(header.classes)},
        "split": {"val": to_json(evaluation)},
        "thresholds": list(header.thresholds or ()),
        "stages": stages,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "versions": {name: header.provenance[name] for name in ("medtl", "python", *VERSIONED)},
    }

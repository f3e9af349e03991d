"""The whole tour on the phantoms of sample_data: train, evaluate, check the maps, score, report."""

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtl.config import Modality, load_config, sample_data
from medtl.core.files import PathLike
from medtl.core.progress import SILENT, Watcher
from medtl.data.manifest import load_manifest
from medtl.data.splits import read_splits
from medtl.data.task import Sample
from medtl.evaluation.intervals import Interval
from medtl.explain.checks import Localisation, localise
from medtl.explain.explanation import explain
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.reader import read_images, read_series
from medtl.inference.predictor import predict
from medtl.training.checkpoint import load_finished
from medtl.workflows.evaluate import evaluate
from medtl.workflows.report import report_folder, report_training
from medtl.workflows.score import score_folder
from medtl.workflows.train import train

# The phantoms are few: a quarter of the patients are held out for the test.
DEMO_OVERRIDES = ("split.val=0.2", "split.test=0.25")
CHECK_IMAGES = {"xray": 4, "mri": 2}  # for the audit of a report


@dataclass(frozen=True)
class Tour:
    """What the tour of one modality produced. correct: how many unseen phantoms were predicted as planted."""

    modality: str
    test: dict[str, Interval]
    localisations: tuple[Localisation, ...]
    scored: int
    refused: int
    correct: int
    report: Path
    run_report: Path
    evaluation: Path
    run: Path
    seconds: float


def run_demo(out: PathLike = "medtl-demo", *, watcher: Watcher = SILENT) -> list[Tour]:
    """Tour X-ray and MRI into OUT/xray and OUT/mri. A tour that was interrupted resumes."""
    return [_tour(modality, Path(out) / modality, watcher) for modality in ("xray", "mri")]


def _tour(modality: Modality, out: Path, watcher: Watcher) -> Tour:
    started = time.perf_counter()
    data, run = sample_data(modality), out / "run"
    watcher.note(modality, f"training on {data}, from ImageNet weights")
    train(modality, data=data, out=run, overrides=DEMO_OVERRIDES, resume=True, watcher=watcher)
    evaluated = evaluate(run, data, out=out / "evaluation", part="test", watcher=watcher)
    localisations = localise_run(run, _test_samples(data, run), partial(_read_mask, data))
    unseen, scores = sample_data("unlabelled") / modality, out / "scores"
    predicted: dict[str, str] = {}
    scored = score_folder(
        run, unseen, scores, watcher=watcher, on_row=lambda row: predicted.update({row.source: row.predicted})
    )
    pages = report_folder(run, scores, out / "report", check_images=CHECK_IMAGES[modality], watcher=watcher)
    story = report_training(run, out / "run-report", data=data, watcher=watcher)
    assert evaluated.page is not None
    return Tour(
        modality=modality,
        test=dict(evaluated.evaluation.metrics),
        localisations=tuple(localisations),
        scored=scored.scored,
        refused=scored.refused,
        correct=_count_correct(predicted, modality),
        report=pages.index,
        run_report=story,
        evaluation=evaluated.page,
        run=run,
        seconds=time.perf_counter() - started,
    )


def _test_samples(data: Path, run: Path) -> list[Sample]:
    split = read_splits(run / "splits.csv")
    config = load_config(config=run / "config.yaml")
    samples = load_manifest(data, None, config.task, config.preprocessing.reading).samples
    return [sample for sample in samples if split[sample.sample_id].split == "test"]


def _read_mask(data: Path, sample: Sample) -> NDArray[Any] | None:
    """Read a phantom's lesion mask: masks/ beside images/, under the same name."""
    name = sample.series.path.name.split(".")[0]
    found = sorted((data / "masks").glob(f"{name}.*"))
    return read_images(found[0])[0].pixels[0] if found else None


def _count_correct(predicted: dict[str, str], modality: str) -> int:
    with (sample_data("unlabelled") / "answers.csv").open(newline="", encoding="utf-8") as file:
        answers = {row["path"]: row["label"] for row in csv.DictReader(file)}
    return sum(answers.get(f"{modality}/{source}") == name for source, name in predicted.items())


def median_gain(localisations: tuple[Localisation, ...]) -> float:
    """Return the median over maps of the share of energy inside the lesion, divided by chance."""
    return float(np.median([found.gain for found in localisations]))


def localise_run(
    run: Path, samples: Sequence[Sample], mask_of: Callable[[Sample], NDArray[Any] | None]
) -> list[Localisation]:
    """Compare heatmaps with masks on the same grids: one row for each sample that has a mask and a map."""
    checkpoint = load_finished(run)
    rows = []
    for sample in samples:
        mask = mask_of(sample)
        if mask is None or not mask.any():
            continue
        image = read_series(sample.series)
        prepared = prepare_image(image, checkpoint.preprocessing)
        probabilities = predict(checkpoint, torch.from_numpy(prepared.pixels)[None])[0]
        heatmap = explain(checkpoint, image, prepared, tuple(probabilities), "grad-cam").heatmap
        if heatmap.sum() > 0:
            rows.append(localise(heatmap, mask))
    return rows

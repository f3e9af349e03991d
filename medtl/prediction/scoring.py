"""Turn a checkpoint and images, or a folder of studies, into predictions: one row each, scored or refused."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ReadError
from medtl.imaging.deidentify import hash_identifier
from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreparedImage, prepare_image
from medtl.imaging.series import Scan, Series, read_series
from medtl.imaging.storage import replacing
from medtl.learning.checkpoint import Checkpoint
from medtl.learning.features import place_images

# A cell that starts with one of these is a formula to a spreadsheet.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Prediction:
    """One row of scores.csv: probabilities in the order of the task's classes, or a refusal's code and reason.

    source is relative to the scored folder; sample_id is a salted hash of it, for pages that others read.
    """

    sample_id: str
    source: str
    status: str
    code: str = ""
    reason: str = ""
    fix: str = ""
    predicted: str = ""
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Scored:
    """A prediction with what it was made from; image and prepared are None for a refusal."""

    prediction: Prediction
    image: Image | None = None
    prepared: PreparedImage | None = None


def score_images(checkpoint: Checkpoint, images: Iterable[Image], batch_size: int = 16) -> list[Prediction]:
    """Score images that are already read. Raises ReadError for one that the model does not take."""
    predictions = []
    for number, image in enumerate(images):
        prepared = prepare_image(image, checkpoint.preprocessing)
        probabilities = predict(checkpoint, torch.from_numpy(prepared.pixels)[None])[0]
        source = image.facts.source
        predictions.append(_scored_row(checkpoint, source, probabilities, sample_key(f"{number}:{source}")))
    return predictions


def score_series(checkpoint: Checkpoint, scan: Scan, root: Path, batch_size: int = 16) -> Iterator[Scored]:
    """Score the series of a scan in batches, in order; what cannot be read is a refused row.

    The refusals of the scan itself come first.
    """
    for error in scan.refusals:
        yield Scored(_refused_row(_relative(Path(error.where), root), error))
    for start in range(0, len(scan.series), batch_size):
        yield from _score_batch(checkpoint, scan.series[start : start + batch_size], root)


def _score_batch(checkpoint: Checkpoint, batch: Sequence[Series], root: Path) -> Iterator[Scored]:
    read = [_read_and_prepare(series, checkpoint) for series in batch]
    pixels = [torch.from_numpy(result[1].pixels) for result in read if not isinstance(result, ReadError)]
    probabilities = iter(predict(checkpoint, torch.stack(pixels)) if pixels else ())
    for series, result in zip(batch, read, strict=True):
        source = source_of(series, root)
        if isinstance(result, ReadError):
            yield Scored(_refused_row(source, result))
        else:
            row = _scored_row(checkpoint, source, next(probabilities), sample_key(source))
            yield Scored(row, *result)


@torch.inference_mode()
def predict(checkpoint: Checkpoint, images: Tensor) -> NDArray[np.float64]:
    """Return probabilities (N, K) of prepared images (N, C, *size)."""
    classifier = checkpoint.classifier
    logits = classifier(place_images(images, classifier)).double()
    return classifier.probabilities(logits).cpu().numpy()


def predicted_class(checkpoint: Checkpoint, probabilities: NDArray[np.float64]) -> str:
    """Name the predicted class; in multilabel every class at or above its threshold, joined by '|'.

    Binary: the positive class at or above the threshold that was chosen on validation data.
    """
    task, thresholds = checkpoint.task, checkpoint.header.thresholds
    if task.kind == "multiclass":
        return task.classes[int(np.argmax(probabilities))]
    if task.kind == "binary":
        cut = thresholds[-1] if thresholds else 0.5
        return task.classes[int(probabilities[1] >= cut)]
    cuts = thresholds or (0.5,) * len(task.classes)
    return "|".join(name for name, p, cut in zip(task.classes, probabilities, cuts, strict=True) if p >= cut)


def sample_key(source: str) -> str:
    """Return the salted id under which pages show a source."""
    return "s" + hash_identifier(source, length=10)


def source_of(series: Series, root: Path) -> str:
    """Name a series to the user: its path relative to the folder, with the item of an archive."""
    relative = _relative(series.path, root)
    return f"{relative}#{series.item}" if series.item else relative


def write_scores(path: Path, classes: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Write scores.csv atomically: sample_id, source, status, code, reason, predicted, p_<class>..."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"p_{name}" for name in classes]
    writer.writerow(["sample_id", "source", "status", "code", "reason", "predicted", *map(safe_cell, names)])
    for row in predictions:
        numbers = [f"{p:.6f}" for p in row.probabilities] or [""] * len(classes)
        texts = [row.sample_id, row.source, row.status, row.code, row.reason, row.predicted]
        writer.writerow([*map(safe_cell, texts), *numbers])
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def safe_cell(text: str) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def _read_and_prepare(series: Series, checkpoint: Checkpoint) -> tuple[Image, PreparedImage] | ReadError:
    try:
        image = read_series(series)
        return image, prepare_image(image, checkpoint.preprocessing)
    except ReadError as error:
        return error


def _scored_row(
    checkpoint: Checkpoint, source: str, probabilities: NDArray[np.float64], sample_id: str
) -> Prediction:
    predicted = predicted_class(checkpoint, probabilities)
    values = tuple(float(p) for p in probabilities)
    return Prediction(sample_id, source, "scored", predicted=predicted, probabilities=values)


def _refused_row(source: str, error: ReadError) -> Prediction:
    return Prediction(sample_key(source), source, "refused", error.code, error.reason, error.fix)


def _relative(path: Path, root: Path) -> str:
    base = root if root.is_dir() else root.parent
    try:
        return path.relative_to(base).as_posix() if path != base else path.name
    except ValueError:
        return path.name

"""Turn a checkpoint and images, or a folder of studies, into predictions: one row each, scored or refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.files import write_csv
from medtl.data.naming import check_names, refused_name, sample_key, source_name
from medtl.errors import CheckpointError, ReadError
from medtl.evaluation.calibration import to_probabilities
from medtl.evaluation.conformal import set_texts
from medtl.imaging.image import Image
from medtl.imaging.inspection import Oddity, find_oddity
from medtl.imaging.preprocessing import PreparedImage, prepare_image
from medtl.imaging.reader import read_series
from medtl.imaging.series import Scan, Series
from medtl.inference.onnx_graph import Graph
from medtl.inference.ood import FeatureDistribution, OodVerdict, decide_ood, distances, find_mismatch
from medtl.models.classifier import place_images
from medtl.training.checkpoint import Checkpoint

COLUMNS = ("sample_id", "source", "status", "code", "reason", "predicted")

Precision = Literal["fp32", "bf16"]

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """One row of scores.csv: probabilities in the order of the task's classes, or why it was refused.

    A scored row has a code and a reason, too, where the image is odd. source is relative to the scored
    folder; sample_id is a salted hash of it, for pages that others read. prediction_set: the classes that
    cannot be excluded; ood: the verdict of the out-of-distribution check; each "" where the checkpoint has
    none.
    """

    sample_id: str
    source: str
    status: str
    code: str = ""
    reason: str = ""
    fix: str = ""
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    prediction_set: str = ""
    ood: OodVerdict = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Prediction":
        """Return the prediction that `asdict` made plain data of. Raises TypeError, ValueError."""
        read = cls(**row)
        shares = tuple(float(share) for share in read.probabilities)
        texts = (getattr(read, one.name) for one in fields(read) if one.name != "probabilities")
        if not all(isinstance(text, str) for text in texts) or not all(0 <= share <= 1 for share in shares):
            raise ValueError("a row of a journal holds what no prediction does")
        return replace(read, probabilities=shares)


class Answer(NamedTuple):
    """What the network says of one image: probabilities (K,), and how far it is from the training images."""

    probabilities: NDArray[np.float64]
    distance: float


@dataclass(frozen=True, eq=False)
class Scored:
    """A prediction with what it was made from; image and prepared are None for a refusal, or if not kept.

    series: None for what a scan itself refused.
    """

    prediction: Prediction
    series: Series | None = None
    image: Image | None = None
    prepared: PreparedImage | None = None


@dataclass(frozen=True)
class Forward:
    """How prepared images go through a network.

    flips: the mean of the probabilities of an image and of its mirror image, left and right. filled: every
    batch has the full size, blank images in place of what lacks, so that no row depends on its neighbours
    to the last bit. graph: what ONNX Runtime runs in place of the network; None for PyTorch.
    """

    precision: Precision = "fp32"
    flips: bool = False
    filled: bool = False
    graph: Graph | None = None


PLAIN = Forward()


def score_images(checkpoint: Checkpoint, images: Iterable[Image], batch_size: int = 16) -> list[Prediction]:
    """Score images that are already read, a batch at a time. Raises ReadError for one that does not fit."""
    predictions: list[Prediction] = []
    for batch in _batches(images, batch_size):
        prepared = [prepare_image(image, checkpoint.preprocessing) for image in batch]
        for image, answer in zip(batch, _predict_prepared(checkpoint, prepared), strict=True):
            source = image.facts.source
            key = sample_key(f"{len(predictions)}:{source}")
            mismatch = find_mismatch(image, checkpoint.header.ood)
            row = _scored_row(checkpoint, source, answer, key, find_oddity(image), mismatch)
            predictions.append(row)
    return predictions


def score_series(
    checkpoint: Checkpoint, scan: Scan, root: Path, batch_size: int = 16, *, keep_images: bool = True
) -> Iterator[Scored]:
    """Score the series of a scan in batches, in order; what cannot be read is a refused row.

    The refusals of the scan itself come first. keep_images: hand each image over along with its prediction;
    otherwise no more than one is in memory at a time, and a batch of prepared ones. Raises ReadError
    name-repeated.
    """
    check_names(scan.series, root)
    yield from map(Scored, refused_rows(scan, root))
    for batch in _batches(scan.series, batch_size):
        yield from score_batch(checkpoint, batch, root, keep_images=keep_images)


def refused_rows(scan: Scan, root: Path) -> Iterator[Prediction]:
    """Yield the rows of what a scan itself refused."""
    for error in scan.refusals:
        yield _refused_row(refused_name(error, root), error)


def score_batch(
    checkpoint: Checkpoint,
    batch: Sequence[Series],
    root: Path,
    *,
    keep_images: bool = False,
    read: Callable[[Series], Image] | None = None,
    forward: Forward = PLAIN,
    size: int = 0,
) -> Iterator[Scored]:
    """Score series in one batch, in order; what cannot be read is a refused row.

    read: how a series becomes an image, if not by read_series. size: what the batch is filled up to, where
    `forward` says so.
    """
    found = [_read_and_prepare(series, checkpoint, keep_images, read or read_series) for series in batch]
    prepared = [result[1] for result in found if not isinstance(result, ReadError)]
    answers = iter(_predict_prepared(checkpoint, prepared, forward, size))
    for series, result in zip(batch, found, strict=True):
        source = source_name(series, root)
        if isinstance(result, ReadError):
            yield Scored(_refused_row(source, result), series)
        else:
            image, prepared_image, oddity, mismatch = result
            row = _scored_row(checkpoint, source, next(answers), sample_key(source), oddity, mismatch)
            yield Scored(row, series, image, prepared_image) if keep_images else Scored(row, series)


def _read_and_prepare(
    series: Series, checkpoint: Checkpoint, keep_image: bool, read: Callable[[Series], Image]
) -> tuple[Image | None, PreparedImage, Oddity | None, OodVerdict] | ReadError:
    try:
        image = read(series)
        prepared = prepare_image(image, checkpoint.preprocessing)
    except ReadError as error:
        return error
    mismatch = find_mismatch(image, checkpoint.header.ood)
    return image if keep_image else None, prepared, find_oddity(image), mismatch


def _predict_prepared(
    checkpoint: Checkpoint, prepared: Sequence[PreparedImage], forward: Forward = PLAIN, size: int = 0
) -> list[Answer]:
    if not prepared:
        return []
    images = torch.stack([torch.from_numpy(image.pixels) for image in prepared])
    if forward.filled:
        images = torch.cat([images, images.new_zeros(max(0, size - len(images)), *images.shape[1:])])
    with arithmetic(forward.precision):
        logits, features = predict_features(checkpoint, images, forward.graph)
        found = to_probabilities(logits, checkpoint.task.kind, checkpoint.header.calibration)
        if forward.flips:
            found = (found + predict(checkpoint, images.flip(-1), forward.graph)) / 2
    answers = map(Answer, found, measure_distances(checkpoint, features))
    return list(islice(answers, len(prepared)))


def measure_distances(checkpoint: Checkpoint, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far pooled features (N, F) are from the training images; NaN where that is not kept."""
    if not checkpoint.ood:
        return np.full(len(features), np.nan)
    return distances(features, FeatureDistribution.from_tensors(checkpoint.ood))


def arithmetic(precision: Precision) -> torch.autocast:
    """Return the context in which a processor computes so."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, here as in children: the last bit of a sum depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predict(checkpoint: Checkpoint, images: Tensor, graph: Graph | None = None) -> NDArray[np.float64]:
    """Return probabilities (N, K) of prepared images (N, C, *size), calibrated as the checkpoint says.

    Raises CheckpointError scores-invalid where one is no number, as from weights that are none.
    """
    logits = predict_logits(checkpoint, images, graph)
    return to_probabilities(logits, checkpoint.task.kind, checkpoint.header.calibration)


def predict_logits(checkpoint: Checkpoint, images: Tensor, graph: Graph | None = None) -> NDArray[np.float64]:
    """Return logits (N, K) of prepared images (N, C, *size). Raises CheckpointError scores-invalid."""
    return predict_features(checkpoint, images, graph)[0]


def predict_features(
    checkpoint: Checkpoint, images: Tensor, graph: Graph | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return logits (N, K) of prepared images (N, C, *size), and the features (N, F) that the head read.

    Features of slices are averaged. Raises CheckpointError scores-invalid.
    """
    logits, features = graph.run(images.numpy()) if graph else _run_network(checkpoint, images)
    if not np.isfinite(logits).all():
        reason = "the model's probabilities are no numbers"
        raise CheckpointError(
            "scores-invalid", reason, where=checkpoint.folder, fix="train again, at a lower rate"
        )
    return logits.astype(np.float64), features.astype(np.float64)


@torch.inference_mode()
def _run_network(checkpoint: Checkpoint, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    classifier = checkpoint.classifier
    pooled = classifier.run(place_images(images, classifier), 0, classifier.head_step)
    features = pooled if pooled.ndim == 2 else pooled.mean(dim=2)
    return classifier.head(pooled).double().cpu().numpy(), features.double().cpu().numpy()


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


def write_scores(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write scores.csv atomically: COLUMNS, p_<class>..., set, ood."""
    cells = (map(_cell, row_fields(row, classes).values()) for row in predictions)
    write_csv(path, chain([column_names(classes)], cells))


def column_names(classes: Sequence[str]) -> list[str]:
    """Return the columns of a table of scores, in order."""
    return list(row_fields(Prediction("", "", ""), classes))


def row_fields(row: Prediction, classes: Sequence[str]) -> dict[str, str | float | None]:
    """Return a row as any table has it: text, and probabilities, None where it was refused."""
    numbers = row.probabilities or (None,) * len(classes)
    texts = {name: getattr(row, name) for name in COLUMNS}
    return {
        **texts,
        **{f"p_{name}": p for name, p in zip(classes, numbers, strict=True)},
        "set": row.prediction_set,
        "ood": row.ood,
    }


def _cell(value: str | float | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.6f}"


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _scored_row(
    checkpoint: Checkpoint,
    source: str,
    answer: Answer,
    sample_id: str,
    oddity: Oddity | None,
    mismatch: OodVerdict,
) -> Prediction:
    probabilities, limits = answer.probabilities, checkpoint.header.ood
    predicted = predicted_class(checkpoint, probabilities)
    values = tuple(float(p) for p in probabilities)
    code, reason = oddity or ("", "")
    floors = checkpoint.header.conformal
    prediction_set = set_texts(probabilities[None], floors, checkpoint.task)[0] if floors else ""
    return Prediction(
        sample_id,
        source,
        "scored",
        code,
        reason,
        predicted=predicted,
        probabilities=values,
        prediction_set=prediction_set,
        ood=decide_ood(mismatch, answer.distance, limits),
    )


def _refused_row(source: str, error: ReadError) -> Prediction:
    return Prediction(sample_key(source), source, "refused", error.code, error.reason, error.fix)

"""Turn a checkpoint and images, or a folder of studies, into predictions: one row each, scored or refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import monai.transforms  # noqa: F401  now, since each forked child would import it again
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.files import write_csv
from medtl.data.naming import check_names, refused_name, sample_key, source_name
from medtl.errors import CheckpointError, ReadError
from medtl.evaluation.calibration import to_probabilities
from medtl.evaluation.conformal import set_texts
from medtl.evaluation.metrics import name_answer
from medtl.imaging.image import Image, ImageWarning, find_warning
from medtl.imaging.preprocessing import PreparedImage, prepare_image
from medtl.imaging.reader import read_series
from medtl.imaging.series import Scan, Series
from medtl.inference.onnx_graph import Graph, Pooled
from medtl.inference.ood import OodVerdict, decide_ood, distances, find_mismatch
from medtl.models.classifier import place_images
from medtl.training.checkpoint import Checkpoint

COLUMNS = ("sample_id", "source", "status", "code", "reason", "predicted")
# Fields of rows in journals of medtl 0.1.0 -> their names now.
OLD_FIELDS = {"held": "prediction_set", "screening": "ood"}

Precision = Literal["fp32", "bf16"]

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """One row of scores.csv: probabilities in the order of the task's classes, or why it was refused.

    A scored row has a code and a reason, too, if the image has a warning. source is relative to the scored
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
        """Return the prediction that `asdict` turned into plain data. Raises TypeError, ValueError.

        Rows of medtl 0.1.0 have two fields under other names.
        """
        read = cls(**{OLD_FIELDS.get(name, name): value for name, value in row.items()})
        numbers = tuple(float(number) for number in read.probabilities)
        texts = (getattr(read, one.name) for one in fields(read) if one.name != "probabilities")
        if not all(isinstance(text, str) for text in texts) or not all(0 <= p <= 1 for p in numbers):
            raise ValueError("a row of a journal is not a prediction")
        return replace(read, probabilities=numbers)


@dataclass(frozen=True, eq=False)
class Scored:
    """A prediction with its input; image and prepared are None for a refusal, or if they are not kept.

    series: None for what a scan itself refused. content: SHA-256 of the files, "" for a refusal.
    """

    prediction: Prediction
    series: Series | None = None
    content: str = ""
    image: Image | None = None
    prepared: PreparedImage | None = None


@dataclass(frozen=True)
class Forward:
    """How prepared images go through a network.

    flips: the mean of the probabilities of an image and of its mirror image, left and right. batch_size: each
    batch is filled up to so many with blank images, so that no row depends on its neighbours to the last bit;
    0 adds none. graph: what ONNX Runtime runs instead of the network; None for PyTorch.
    """

    precision: Precision = "fp32"
    flips: bool = False
    batch_size: int = 0
    graph: Graph | None = None


class _Ready(NamedTuple):
    """An image that is ready for the network. image: None if not kept; content: SHA-256 of its files."""

    image: Image | None
    content: str
    prepared: PreparedImage
    warning: ImageWarning | None
    mismatch: OodVerdict


def score_series(
    checkpoint: Checkpoint, scan: Scan, root: Path, batch_size: int = 16, *, keep_images: bool = True
) -> Iterator[Scored]:
    """Score the series of a scan in batches, in order; what cannot be read is a refused row.

    The refusals of the scan itself come first. keep_images: yield each image with its prediction; otherwise
    no more than one is in memory at a time, and a batch of prepared ones. Raises ReadError name-repeated.
    """
    check_names(scan.series, root)
    yield from map(Scored, refused_rows(scan, root))
    for batch in batched(scan.series, batch_size):
        yield from score_batch(checkpoint, batch, root, keep_images=keep_images)


def refused_rows(scan: Scan, root: Path) -> Iterator[Prediction]:
    """Yield the rows of what a scan itself refused."""
    for error in scan.refusals:
        yield _refused_row(refused_name(error, root), error)


def read_or_refuse(series: Series) -> Image | ReadError:
    """Return the image of a series, or why it cannot be read."""
    try:
        return read_series(series)
    except ReadError as error:
        return error


def score_batch(
    checkpoint: Checkpoint,
    batch: Sequence[Series],
    root: Path,
    *,
    keep_images: bool = False,
    read: Callable[[Series], Image | ReadError] = read_or_refuse,
    forward: Forward = Forward(),
) -> Iterator[Scored]:
    """Score series in one batch, in order; what cannot be read is a refused row."""
    outcomes = [_make_ready(read(series), checkpoint, keep_images) for series in batch]
    ready = [outcome for outcome in outcomes if not isinstance(outcome, ReadError)]
    answers = _predict_ready(checkpoint, ready, forward)
    for series, outcome in zip(batch, outcomes, strict=True):
        source = source_name(series, root)
        if isinstance(outcome, ReadError):
            yield Scored(_refused_row(source, outcome), series)
        else:
            row = _scored_row(checkpoint, source, outcome, *next(answers))
            kept = (outcome.image, outcome.prepared) if keep_images else ()
            yield Scored(row, series, outcome.content, *kept)


def _make_ready(image: Image | ReadError, checkpoint: Checkpoint, keep_image: bool) -> _Ready | ReadError:
    """Prepare an image, or return why it was refused, here if it does not fit the checkpoint."""
    if isinstance(image, ReadError):
        return image
    try:
        prepared = prepare_image(image, checkpoint.preprocessing)
    except ReadError as error:
        return error
    mismatch = find_mismatch(image, checkpoint.header.ood)
    kept = image if keep_image else None
    return _Ready(kept, image.facts.sha256, prepared, find_warning(image), mismatch)


def _predict_ready(
    checkpoint: Checkpoint, ready: Sequence[_Ready], forward: Forward
) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Yield the probabilities (K,) of each image, and its distance from the training images."""
    if not ready:
        return iter(())
    images = torch.stack([torch.from_numpy(one.prepared.pixels) for one in ready])
    blank = images.new_zeros(max(0, forward.batch_size - len(images)), *images.shape[1:])
    images = torch.cat([images, blank])
    with torch.autocast("cpu", torch.bfloat16, enabled=forward.precision == "bf16"):
        logits, features = predict_features(checkpoint, images, forward.graph)
        probabilities = to_probabilities(logits, checkpoint.task.kind, checkpoint.header.calibration)
        if forward.flips:
            probabilities = (probabilities + predict(checkpoint, images.flip(-1), forward.graph)) / 2
    return zip(probabilities, measure_distances(checkpoint, features).tolist(), strict=True)


def measure_distances(checkpoint: Checkpoint, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances (N,) of pooled features (N, F) from the training images; NaN if unknown."""
    if not checkpoint.ood:
        return np.full(len(features), np.nan)
    return distances(features, checkpoint.ood)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as children do: the last bit of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predict(checkpoint: Checkpoint, images: Tensor, graph: Graph | None = None) -> NDArray[np.float64]:
    """Return probabilities (N, K) of prepared images (N, C, *size), calibrated as the checkpoint says.

    Raises CheckpointError scores-invalid if one is not a number, as from damaged weights.
    """
    logits, _ = predict_features(checkpoint, images, graph)
    return to_probabilities(logits, checkpoint.task.kind, checkpoint.header.calibration)


def predict_features(
    checkpoint: Checkpoint, images: Tensor, graph: Graph | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return logits (N, K) of prepared images (N, C, *size), and the pooled features (N, F).

    Features of slices are averaged. Raises CheckpointError scores-invalid.
    """
    if graph:
        outputs = graph.run(images.numpy())
    else:
        classifier = checkpoint.classifier
        with torch.inference_mode():
            tensors = Pooled(classifier)(place_images(images, classifier))
        outputs = tuple(tensor.double().cpu().numpy() for tensor in tensors)
    logits, features = (output.astype(np.float64) for output in outputs)
    if not np.isfinite(logits).all():
        reason, fix = "the model's probabilities are not numbers", "train again, at a lower learning rate"
        raise CheckpointError("scores-invalid", reason, where=checkpoint.folder, fix=fix)
    return logits, features


def predicted_class(checkpoint: Checkpoint, probabilities: NDArray[np.float64]) -> str:
    """Name the predicted class, at the thresholds that were chosen on validation data, or else at 0.5."""
    cuts = checkpoint.header.thresholds or (0.5,) * len(checkpoint.task.asked_classes)
    return name_answer(probabilities, cuts, checkpoint.task)


def write_scores(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write scores.csv atomically: COLUMNS, p_<class>..., set, ood."""
    cells = (map(_cell, row_fields(row, classes).values()) for row in predictions)
    write_csv(path, chain([column_names(classes)], cells))


def column_names(classes: Sequence[str]) -> list[str]:
    """Return the columns of a table of scores, in order."""
    return list(row_fields(Prediction("", "", ""), classes))


def row_fields(row: Prediction, classes: Sequence[str]) -> dict[str, str | float | None]:
    """Return a row by column: texts, and probabilities, None if it was refused."""
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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of `size`, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _scored_row(
    checkpoint: Checkpoint, source: str, ready: _Ready, probabilities: NDArray[np.float64], distance: float
) -> Prediction:
    code, reason = ready.warning or ("", "")
    floors, limits = checkpoint.header.conformal, checkpoint.header.ood
    return Prediction(
        sample_key(source),
        source,
        "scored",
        code,
        reason,
        predicted=predicted_class(checkpoint, probabilities),
        probabilities=tuple(probabilities.tolist()),
        prediction_set=set_texts(probabilities[None], floors, checkpoint.task)[0] if floors else "",
        ood=decide_ood(ready.mismatch, distance, limits),
    )


def _refused_row(source: str, error: ReadError) -> Prediction:
    return Prediction(sample_key(source), source, "refused", error.code, error.reason, error.fix)

"""Prepare a labelled folder: studies + labels -> pixels on one grid, a dataset to move and train from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtl.config import Modality, RunConfig, load_config
from medtl.core.files import PathLike
from medtl.core.progress import SILENT, Watcher, note_all
from medtl.data.dataset_file import is_dataset, write_record
from medtl.data.manifest import LABELS_FILE, load_manifest, targets
from medtl.data.prepared import all_refusals, prepare_samples, warning_notes
from medtl.data.task import Sample, Task
from medtl.errors import ConfigError, ReadError


@dataclass(frozen=True)
class PrepareOutcome:
    """What a prepared dataset contains. counts: samples of each class; decoded: how many are new."""

    folder: Path
    task: Task
    samples: int
    patients: int
    counts: Mapping[str, int]
    shape: tuple[int, ...]
    decoded: int
    bytes: int
    refusals: tuple[ReadError, ...]


def prepare(
    data: PathLike,
    out: PathLike,
    modality: Modality | None = None,
    *,
    labels: PathLike | None = None,
    config: RunConfig | PathLike | None = None,
    overrides: Sequence[str] = (),
    watcher: Watcher = SILENT,
) -> PrepareOutcome:
    """Decode and resample a labelled folder once, into the dataset `out`, to train and evaluate on.

    modality, config and overrides: as for train; only preprocessing and task matter. What an earlier call
    wrote from the same files and settings is reused; anything else is replaced. Raises MedtlError.

    >>> import medtl
    >>> medtl.prepare(medtl.sample_data("xray"), "dataset", "xray").shape
    (1, 160, 160)
    """
    data, out, config = Path(data), Path(out), load_config(modality, config, overrides)
    if is_dataset(data):
        reason, fix = "is already a prepared dataset", "name the folder that it was made from"
        raise ConfigError("dataset-recipe", reason, where=data, fix=fix)
    table = Path(labels) if labels else data / LABELS_FILE
    labels = table if labels or table.is_file() else None
    manifest = load_manifest(data, labels, config.task, config.preprocessing.reading, watcher)
    note_all(watcher, manifest.notes)
    decoded = 0

    def progress(done: int, total: int) -> None:
        nonlocal decoded
        decoded += 1
        watcher.progress("reading", done, total)

    prepared = prepare_samples(manifest.samples, config.preprocessing, folder=out, progress=progress)
    write_record(prepared, manifest, data, labels, config.task, config.preprocessing)
    note_all(watcher, warning_notes(prepared))
    readable = set(prepared.sample_ids)
    samples = [sample for sample in manifest.samples if sample.sample_id in readable]
    return PrepareOutcome(
        folder=out,
        task=manifest.task,
        samples=len(samples),
        patients=len({sample.patient_id for sample in samples}),
        counts=_count_classes(samples, manifest.task),
        shape=prepared.pixels.shape[1:],
        decoded=decoded,
        bytes=sum(path.stat().st_size for path in out.iterdir()),
        refusals=all_refusals(manifest, prepared),
    )


def _count_classes(samples: Sequence[Sample], task: Task) -> dict[str, int]:
    """Count the samples of each class; in multilabel those that have it."""
    labelled = targets(task, [sample for sample in samples if sample.target is not None])
    several = task.kind == "multilabel"
    present = labelled == 1 if several else np.equal.outer(labelled, range(len(task.classes)))
    return dict(zip(task.classes, present.sum(axis=0).tolist(), strict=True))

"""The prepared dataset: samples decoded and resampled once, then memory-mapped by whoever trains.

It lies in a folder named by its content: the preprocessing and the identity of each source file. Pixels are
uint16 steps of [0, 1]: half the size of float32, and an error below 1e-5.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ReadError
from medtl.imaging.locations import medtl_home
from medtl.imaging.manifest import Sample
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.series import read_series
from medtl.imaging.storage import make_folder, read_json, unwritable, write_json

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
STEPS = 65535
Progress = Callable[[int, int], None]
Refusals = tuple[tuple[str, ReadError], ...]


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Prepared pixels of samples, memory-mapped: uint16 (N, C, *size), row by row the sample_ids.

    refusals are the samples that could not be read or prepared, as (sample_id, error).
    """

    folder: Path
    pixels: NDArray[np.uint16]
    sample_ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    refusals: Refusals

    def rows_of(self, samples: Iterable[Sample]) -> NDArray[np.int64]:
        """Return the row of each sample."""
        row = {sample_id: index for index, sample_id in enumerate(self.sample_ids)}
        return np.array([row[sample.sample_id] for sample in samples], dtype=np.int64)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return float32 images (n, C, *size) in [0, 1]."""
        return torch.from_numpy(self.pixels[np.asarray(rows)].astype(np.float32)).div_(STEPS)


def prepare_samples(
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    *,
    progress: Progress | None = None,
    workers: int = 2,
) -> PreparedDataset:
    """Decode and prepare samples, or open what an earlier call with the same files and settings left.

    A sample that cannot be read is refused and the rest go on. Raises OutputError when the disk is full.
    """
    folder = medtl_home() / "prepared" / _content_key(samples, config)
    refusals = _confirm_refusals(folder, samples, config)
    if refusals is None:
        refusals = _write_dataset(folder, samples, config, progress, workers)
    return _open(folder, refusals)


def _confirm_refusals(
    folder: Path, samples: Sequence[Sample], config: PreprocessingConfig
) -> Refusals | None:
    """Read again what an earlier call refused; None where there is no whole dataset that still holds.

    So a file that was out of reach for a moment is not left out for ever, and no error text is kept.
    """
    header = _read_whole_header(folder)
    if header is None:
        return None
    refused = set(header["refused"])
    again = [(s.sample_id, _prepare_one(s, config)) for s in samples if s.sample_id in refused]
    confirmed = tuple((sample_id, found) for sample_id, found in again if isinstance(found, ReadError))
    return confirmed if len(confirmed) == len(refused) else None


def _read_whole_header(folder: Path) -> dict[str, Any] | None:
    """Return the header of a dataset whose pixels are all there, None otherwise."""
    try:
        header = read_json(folder / "prepared.json")
        size = (folder / "pixels.u16").stat().st_size
    except (OSError, ValueError):
        return None
    expected = 2 * len(header["sample_ids"]) * math.prod(header["shape"])
    return header if size == expected else None


def _open(folder: Path, refusals: Refusals) -> PreparedDataset:
    """Memory-map a prepared dataset."""
    header = read_json(folder / "prepared.json")
    shape = (len(header["sample_ids"]), *header["shape"])
    pixels = np.memmap(folder / "pixels.u16", dtype=np.uint16, mode="r", shape=shape) if shape[0] else None
    return PreparedDataset(
        folder,
        np.empty(shape, np.uint16) if pixels is None else pixels,
        tuple(header["sample_ids"]),
        tuple(header["content_hashes"]),
        refusals,
    )


def _content_key(samples: Sequence[Sample], config: PreprocessingConfig) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {config.model_dump_json()}".encode())
    for sample in samples:
        digest.update(json.dumps([sample.sample_id, sample.series.item, _file_facts(sample)]).encode())
    return digest.hexdigest()[:24]


def _file_facts(sample: Sample) -> list[tuple[str, int, int]]:
    """Identify files as make does: by path, size and time of change. A file that is gone is refused later."""
    facts = []
    for path in sample.series.files:
        try:
            status = path.stat()
        except OSError:
            facts.append((str(path), -1, -1))
        else:
            facts.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    return facts


def _write_dataset(
    folder: Path,
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    progress: Progress | None,
    workers: int,
) -> Refusals:
    make_folder(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder.parent))
    try:
        refusals = _fill(staging, samples, config, progress, workers)
        shutil.rmtree(folder, ignore_errors=True)  # what is there is not whole, or no longer true
        staging.replace(folder)
        return refusals
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(
    staging: Path,
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    progress: Progress | None,
    workers: int,
) -> Refusals:
    kept, hashes, refusals = [], [], []
    with (staging / "pixels.u16").open("wb") as file:
        for done, (sample, result) in enumerate(_prepared_in_order(samples, config, workers), start=1):
            if isinstance(result, ReadError):
                refusals.append((sample.sample_id, result))
            else:
                file.write(result.tobytes())
                kept.append(sample.sample_id)
                hashes.append(hashlib.sha256(result.tobytes()).hexdigest()[:24])
            if progress:
                progress(done, len(samples))
        file.flush()
        os.fsync(file.fileno())
    header = {
        "version": FORMAT_VERSION,
        "preprocessing": config.model_dump(mode="json"),
        "shape": [config.channels, *config.size],
        "sample_ids": kept,
        "content_hashes": hashes,
        "refused": [sample_id for sample_id, _ in refusals],
    }
    write_json(staging / "prepared.json", header)
    return tuple(refusals)


def _prepared_in_order(
    samples: Sequence[Sample], config: PreprocessingConfig, workers: int
) -> Iterator[tuple[Sample, NDArray[np.uint16] | ReadError]]:
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        yield from zip(samples, pool.map(lambda sample: _prepare_one(sample, config), samples), strict=True)


def _prepare_one(sample: Sample, config: PreprocessingConfig) -> NDArray[np.uint16] | ReadError:
    try:
        pixels = prepare_image(read_series(sample.series), config).pixels
    except ReadError as error:
        return error
    return np.round(pixels * STEPS).astype(np.uint16)

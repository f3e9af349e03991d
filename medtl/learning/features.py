"""The frozen prefix's activations at the boundary, computed once, memory-mapped and read by training.

A frozen prefix is a pure function of the prepared image, so a stage that freezes it need not run it again.
A store is named by its content: the prefix's weights, the samples' pixels, the views and the boundary.
"""

import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl import __version__
from medtl.imaging.augmentation import Augmentation
from medtl.imaging.locations import medtl_home
from medtl.imaging.prepared import PreparedDataset
from medtl.imaging.storage import make_folder, read_json, unwritable, write_json
from medtl.learning.classifier import Classifier
from medtl.learning.stages import Stage, entry_step

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

# Activations are trusted for as long as what computed them is the same.
VERSIONS = (__version__, *(version(name) for name in ("torch", "timm", "monai")))


@dataclass(frozen=True, eq=False)
class Views:
    """Views of some rows of a prepared dataset: view 0 is the image itself, view v > 0 the random view v."""

    dataset: PreparedDataset
    rows: NDArray[np.int64]
    augmentation: Augmentation
    seed: int
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int] | NDArray[np.int64], view: int) -> Tensor:
        """Return view number `view` of the samples at `indices`: float32 (n, C, *size) in [0, 1]."""
        images = self.dataset.read(self.rows[np.asarray(indices)])
        if view == 0:
            return images
        ids = [self.dataset.content_hashes[row] for row in self.rows[np.asarray(indices)]]
        return torch.stack(
            [self.augmentation(image, self.seed, view, name) for image, name in zip(images, ids, strict=True)]
        )


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Activations entering a step: float32 (views, N, *shape), memory-mapped."""

    activations: NDArray[np.float32]

    def read(self, indices: Sequence[int] | NDArray[np.int64], view: int) -> Tensor:
        """Return the activations of the samples at `indices` in one view."""
        return torch.from_numpy(self.activations[view % len(self.activations), np.asarray(indices)])


@dataclass(frozen=True)
class CachePlan:
    """What one stage does about its frozen prefix, and why, in one line."""

    step: int
    views: int
    cached: bool
    reason: str


def plan_cache(
    classifier: Classifier, stages: Sequence[Stage], image: Tensor, samples: int, budget_bytes: float
) -> list[CachePlan]:
    """Decide for each stage whether its prefix is computed once and kept, or computed in each epoch.

    image: one prepared image (1, C, *size), from which the size of the activations is measured. Keeping pays
    when a stage has more epochs than views; the stages share the budget, first come first served.
    """
    plans, left = [], budget_bytes
    for stage in stages:
        step = entry_step(classifier, stage)
        size = samples * stage.views * _activation_bytes(classifier, image, step)
        plan = _plan_stage(step, stage, size, left)
        left -= size if plan.cached else 0
        plans.append(plan)
    return plans


def _plan_stage(step: int, stage: Stage, size: float, left: float) -> CachePlan:
    if step == 0:
        return CachePlan(step, stage.views, False, "nothing is frozen")
    if stage.epochs <= stage.views:
        return CachePlan(
            step, stage.views, False, f"{stage.epochs} epochs are no more than {stage.views} views"
        )
    if size > left:
        reason = (
            f"{size / 1e9:.1f} GB of activations exceed the {max(left, 0) / 1e9:.1f} GB left of the budget"
        )
        return CachePlan(step, stage.views, False, reason)
    passes = "one pass" if stage.views == 1 else f"{stage.views} passes"
    reason = f"{passes} in place of {stage.epochs}, {size / 1e6:.0f} MB"
    return CachePlan(step, stage.views, True, reason)


@torch.inference_mode()
def _activation_bytes(classifier: Classifier, image: Tensor, step: int) -> int:
    was_training = classifier.training
    device = next(classifier.parameters()).device
    activation = classifier.eval().run(image.to(device), 0, step)
    classifier.train(was_training)
    return activation.numel() * 4


class FeatureCache:
    """Feature stores on disk, one folder for each content key."""

    def __init__(
        self,
        classifier: Classifier,
        autocast: Callable[[], AbstractContextManager],
        batch_size: int,
        precision: str,
        root: Path | None = None,
    ) -> None:
        self.classifier = classifier
        self.autocast = autocast
        self.batch_size = batch_size
        self.precision = precision
        self.root = root or medtl_home() / "features"

    def ensure(
        self, views: Views, wanted: dict[int, int], progress: Progress | None = None
    ) -> dict[int, FeatureStore]:
        """Return a store for each wanted step (step -> number of views); one pass computes the absent.

        Raises OutputError when the disk is full.
        """
        folders = {step: self._folder(views, step, count) for step, count in wanted.items()}
        absent = {step: wanted[step] for step, folder in folders.items() if not _is_whole(folder)}
        if absent:
            self._compute(views, absent, folders, progress)
        return {step: _open_store(folder) for step, folder in folders.items()}

    def _folder(self, views: Views, step: int, count: int) -> Path:
        digest = hashlib.sha256()
        parts = (*VERSIONS, self._prefix_digest(step), step, count, self.precision, self.batch_size)
        for part in map(str, parts):
            digest.update(part.encode() + b"\0")
        digest.update((views.key if count > 1 else "plain").encode())
        for row in views.rows:
            digest.update(views.dataset.content_hashes[row].encode())
        return self.root / digest.hexdigest()[:24]

    def _prefix_digest(self, step: int) -> str:
        digest = hashlib.sha256(self.classifier.backbone.name.encode())
        for name, group in list(self.classifier.backbone.groups.items())[:step]:
            for key, tensor in group.state_dict().items():
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _compute(
        self, views: Views, wanted: dict[int, int], folders: dict[int, Path], progress: Progress | None
    ) -> None:
        staging = self._make_staging()
        try:
            shapes = self._write_activations(staging, views, wanted, progress)
            for step, count in wanted.items():
                place = staging / str(step)
                write_json(place / "features.json", {"shape": [count, len(views), *shapes[step]]})
                shutil.rmtree(folders[step], ignore_errors=True)  # it was absent or not whole
                place.replace(folders[step])
        except OSError as error:
            raise unwritable(self.root, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _make_staging(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=".computing-", dir=make_folder(self.root)))
        except OSError as error:
            raise unwritable(self.root, error) from error

    def _write_activations(
        self, staging: Path, views: Views, wanted: dict[int, int], progress: Progress | None
    ) -> dict[int, tuple[int, ...]]:
        shapes: dict[int, tuple[int, ...]] = {}
        files = {}
        for step in wanted:
            (staging / str(step)).mkdir()
            files[step] = (staging / str(step) / "activations.f32").open("wb")
        total, done = max(wanted.values()) * len(views), 0
        try:
            for view in range(max(wanted.values())):
                steps = sorted(step for step, count in wanted.items() if view < count)
                for start in range(0, len(views), self.batch_size):
                    indices = np.arange(start, min(start + self.batch_size, len(views)))
                    for step, activation in self._boundaries(views.read(indices, view), steps).items():
                        files[step].write(activation.numpy().tobytes())
                        shapes[step] = tuple(activation.shape[1:])
                    done += len(indices)
                    if progress:
                        progress(done, total)
        finally:
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
        return shapes

    @torch.inference_mode()
    def _boundaries(self, images: Tensor, steps: Sequence[int]) -> dict[int, Tensor]:
        """Return the activations entering each step, in one chain."""
        classifier = self.classifier
        was_training = classifier.training
        classifier.eval()
        found, at = {}, 0
        x = place_images(images, classifier)
        for step in steps:
            with self.autocast():
                x = classifier.run(x, at, step)
            found[step] = x.float().cpu().contiguous()
            at = step
        classifier.train(was_training)
        return found


def lay_out(classifier: Classifier) -> Classifier:
    """Lay the weights out channels last: convolutions on processors and tensor cores are faster so."""
    return classifier.to(memory_format=_layout(classifier))


def place_images(x: Tensor, classifier: Classifier) -> Tensor:
    """Move a batch to the classifier's device, in its layout where it is a map (N, C, *spatial)."""
    x = x.to(next(classifier.parameters()).device, non_blocking=True)
    layout = _layout(classifier)
    return x.to(memory_format=layout) if x.ndim == (4 if layout is torch.channels_last else 5) else x


def _layout(classifier: Classifier) -> torch.memory_format:
    volumetric = any(parameter.ndim == 5 for parameter in classifier.parameters())
    return torch.channels_last_3d if volumetric else torch.channels_last


def _is_whole(folder: Path) -> bool:
    try:
        shape = read_json(folder / "features.json")["shape"]
        return (folder / "activations.f32").stat().st_size == 4 * math.prod(shape)
    except (OSError, ValueError):
        return False


def _open_store(folder: Path) -> FeatureStore:
    shape = tuple(read_json(folder / "features.json")["shape"])
    return FeatureStore(np.memmap(folder / "activations.f32", dtype=np.float32, mode="r", shape=shape))

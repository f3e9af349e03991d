"""The loop over stages: thaw, compute the frozen prefix once, train, validate, keep the best, go on."""

import csv
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medtl.errors import TrainingError
from medtl.imaging.randomness import derive_seed, make_generator
from medtl.imaging.storage import replacing
from medtl.learning.checkpoint import (
    CheckpointHeader,
    Position,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_header,
    read_tensors,
    save_checkpoint,
)
from medtl.learning.classifier import Classifier
from medtl.learning.features import (
    CachePlan,
    FeatureCache,
    FeatureStore,
    Views,
    lay_out,
    place_images,
    plan_cache,
)
from medtl.learning.imbalance import IMBALANCE
from medtl.learning.metrics import auroc
from medtl.learning.run_folder import RunFolder
from medtl.learning.stages import Stage, parameter_groups, rate_factor, thaw

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]


class FitConfig(BaseModel):
    """How batches are drawn and steps are taken.

    precision: `auto` is 32 bits on a processor, and bf16 (or fp16) mixed on a GPU; a resumed run is exact on
    a processor, and fp16 begins its loss scale anew. cache_gb bounds the disk
    that one run's cached activations may take; 0 turns the cache off. workers: processes that load and
    augment batches; the result does not depend on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    batch_size: int = Field(default=32, ge=1)
    workers: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    imbalance: str = "none"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    gradient_clip: float | None = Field(default=1.0, gt=0)
    cache_gb: float = Field(default=8.0, ge=0)


@dataclass(frozen=True, eq=False)
class FitData:
    """Training and validation views with their targets, (N,) or (N, K)."""

    train: Views
    train_targets: NDArray
    val: Views
    val_targets: NDArray


class Watcher(Protocol):
    """What a front door may want to show while a fit runs."""

    def note(self, label: str, text: str) -> None:
        """Something that the user should know."""

    def stage(self, number: int, of: int, stage: Stage, plan: CachePlan) -> None:
        """A stage begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Something within a stage has come to `done` of `total`."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; `row` is its line of history.csv."""


@dataclass(frozen=True, eq=False)
class BatchReader(Dataset[Batch]):
    """Read whole batches: item i is batch number i of an epoch."""

    read: Callable[[NDArray[np.int64]], Tensor]
    targets: NDArray
    batches: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        indices = self.batches[number]
        return self.read(indices), torch.from_numpy(self.targets[indices])


def make_fabric(config: FitConfig) -> Fabric:
    """Return Fabric on the device and precision asked for. Raises TrainingError device-missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device-missing", "no CUDA device is here", where="--device cuda", fix="use --device cpu"
        )
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    accelerator = "cuda" if on_gpu else "cpu"
    return Fabric(accelerator=accelerator, devices=1, precision=choose_precision(config, on_gpu))


def choose_precision(config: FitConfig, on_gpu: bool) -> Any:
    """Return the precision asked for; `auto` is 32 bits on a processor and half precision on a GPU."""
    if config.precision != "auto":
        return config.precision
    half = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "16-mixed"
    return half if on_gpu else "32-true"


class Fit:
    """One training run: its classifier, data, schedule, and how far it has come."""

    def __init__(
        self,
        classifier: Classifier,
        data: FitData,
        header: CheckpointHeader,
        config: FitConfig,
        run: RunFolder,
        watcher: Watcher,
    ) -> None:
        self.fabric = make_fabric(config)
        self.classifier = lay_out(classifier)
        self.model = self.fabric.setup_module(self.classifier)
        self.data = data
        self.header = header
        self.config = config
        self.run_folder = run
        self.watcher = watcher
        self.strategy = IMBALANCE[config.imbalance](classifier.task, data.train_targets)
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}  # of each stage, earlier sessions of the run included
        self.plans: list[CachePlan] = []

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The resolved schedule."""
        return self.header.schedule

    def run(self, *, resume: bool) -> None:
        """Train through the schedule, from the last checkpoint where `resume` is set.

        The best checkpoint's weights are in the classifier afterwards. Raises TrainingError loss-not-finite,
        OutputError; the last checkpoint is whole in any case.
        """
        resumed = resume and (self.run_folder.last / "checkpoint.json").is_file()
        if resumed:
            self._restore_last()
        self.seconds = {
            name: self._trained_seconds(name) for name in {str(row["stage"]) for row in self.history}
        }
        self.plans = self._plan()
        with self._telling_what_ran_out():
            for number in range(self.position.stage, len(self.stages)):
                self._run_stage(number, resumed and number == self.position.stage)
        self._load_model(self.run_folder.best)

    @contextmanager
    def _telling_what_ran_out(self) -> Iterator[None]:
        """Turn a full GPU or a loader process that was killed into one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            fix = "lower fit.batch_size, then --resume"
            raise TrainingError(
                "out-of-memory", "the device is full", where=self.run_folder.root, fix=fix
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            fix = "set fit.workers=0 or free memory, then --resume"
            reason = "a loader process was killed"
            raise TrainingError("worker-lost", reason, where=self.run_folder.root, fix=fix) from error

    def _plan(self) -> list[CachePlan]:
        image = self.data.train.read([0], 0)
        samples = len(self.data.train) + len(self.data.val)
        return plan_cache(self.classifier, self.stages, image, samples, self.config.cache_gb * 1e9)

    def _run_stage(self, number: int, resumed: bool) -> None:
        started = time.perf_counter()
        stage, plan = self.stages[number], self.plans[number]
        self.watcher.stage(number + 1, len(self.stages), stage, plan)
        thaw(self.classifier, stage)
        optimizer = self._make_optimizer(stage, resumed)
        if not resumed:
            self._begin_stage(number)
        stores = self._feature_stores(number)
        while self.position.epoch < stage.epochs and not self._patience_is_spent(stage):
            self._run_epoch(number, optimizer, stores)
        self._load_model(self.run_folder.best)
        self.seconds[stage.name] = max(time.perf_counter() - started, self._trained_seconds(stage.name))

    def _trained_seconds(self, stage: str) -> float:
        return sum(float(row["seconds"]) for row in self.history if row["stage"] == stage)

    def _begin_stage(self, number: int) -> None:
        """Move to a stage; from the second on, keep where it begins before its epochs may change `best`."""
        self.position = self.position.model_copy(update={"stage": number, "epoch": 0, "waited": 0})
        if number:
            self._save_last(self._header(), model_tensors(self.classifier), {})

    def _make_optimizer(self, stage: Stage, resumed: bool) -> Any:
        optimizer = torch.optim.AdamW(parameter_groups(self.classifier, stage))
        if resumed:
            header = read_header(self.run_folder.last)
            load_optimizer(optimizer, read_tensors(self.run_folder.last, header, "optimizer"))
        return self.fabric.setup_optimizers(optimizer)

    def _patience_is_spent(self, stage: Stage) -> bool:
        return stage.patience is not None and self.position.waited >= stage.patience

    def _feature_stores(self, number: int) -> tuple[FeatureStore, FeatureStore] | None:
        """Return the stage's training and validation activations, None where its prefix is not cached.

        Groups that this stage freezes have been frozen in every stage before it, if the schedule only thaws.
        Then all later stages start from the same pretrained prefix, and one pass over the images serves all.
        """
        if not self.plans[number].cached:
            return None
        wanted: dict[int, int] = {}
        for plan in self._plans_sharing_prefix(number):
            wanted[plan.step] = max(plan.views, wanted.get(plan.step, 0))
        cache = FeatureCache(self.classifier, self.fabric.autocast, self.config.batch_size, self._precision)
        train = cache.ensure(self.data.train, wanted, partial(self.watcher.progress, "frozen prefix"))
        val = cache.ensure(
            self.data.val, dict.fromkeys(wanted, 1), partial(self.watcher.progress, "validation")
        )
        step = self.plans[number].step
        return train[step], val[step]

    def _plans_sharing_prefix(self, number: int) -> list[CachePlan]:
        """Return the cached plans from this stage on whose prefix no stage before them trains."""
        lowest, sharing = self.plans[number].step, []
        for plan in self.plans[number:]:
            lowest = min(lowest, plan.step)
            if plan.cached and plan.step <= lowest:
                sharing.append(plan)
        return sharing

    @property
    def _precision(self) -> str:
        device = self.fabric.device.type
        return f"{device} {choose_precision(self.config, device == 'cuda')}"

    def _run_epoch(
        self, number: int, optimizer: Any, stores: tuple[FeatureStore, FeatureStore] | None
    ) -> None:
        started = time.perf_counter()
        stage, epoch = self.stages[number], self.position.epoch
        train_loss = self._train(number, optimizer, stores)
        probabilities, val_loss = self._validate(number, stores)
        score = float(auroc(probabilities, self.data.val_targets, kind=self.classifier.task.kind))
        improved = self._advance(score, val_loss)
        row = {
            "stage": stage.name,
            "epoch": epoch + 1,
            "step": self.position.step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_auroc": None if np.isnan(score) else float(score),
            "seconds": round(time.perf_counter() - started, 3),
            "cached": stores is not None,
        }
        self.history.append(row)
        self._save(optimizer, improved, row)
        self.watcher.epoch(row)

    def _advance(self, score: float, val_loss: float) -> bool:
        """Move the position past the epoch; return whether it was the best so far."""
        reached = (-1.0 if np.isnan(score) else float(score), -val_loss)
        improved = self.position.best is None or reached > self.position.best
        self.position = self.position.model_copy(
            update={
                "epoch": self.position.epoch + 1,
                "best": reached if improved else self.position.best,
                "waited": 0 if improved else self.position.waited + 1,
            }
        )
        return improved

    def _train(self, number: int, optimizer: Any, stores: tuple[FeatureStore, FeatureStore] | None) -> float:
        stage = self.stages[number]
        batches = self._draw_batches(number)
        total = stage.epochs * len(batches)
        view = self._view(number)
        reader = partial(stores[0].read, view=view) if stores else partial(self.data.train.read, view=view)
        start = self.plans[number].step if stores else 0
        self.classifier.train()
        losses = []
        for index, (x, targets) in enumerate(self._load(reader, self.data.train_targets, batches)):
            factor = rate_factor(self.position.epoch * len(batches) + index, total, stage.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_rate"] * factor
            losses.append(self._step(x, targets, start, optimizer))
            self.watcher.progress(f"{stage.name} epoch {self.position.epoch + 1}", index + 1, len(batches))
        return float(np.mean(losses))

    def _view(self, number: int) -> int:
        """Return which view this epoch trains on: rotating where a prefix is frozen, otherwise always new."""
        stage = self.stages[number]
        if self.plans[number].step > 0:
            return self.position.epoch % stage.views
        return 1 + sum(earlier.epochs for earlier in self.stages[:number]) + self.position.epoch

    def _draw_batches(self, number: int) -> list[NDArray[np.int64]]:
        """Return this epoch's batches of indices, in sizes that differ by one at most."""
        generator = make_generator(self.config.seed, "order", number, self.position.epoch)
        count, weights = len(self.data.train), self.strategy.sampling_weights
        if weights is None:
            order = generator.permutation(count)
        else:
            order = generator.choice(count, size=count, replace=True, p=weights)
        return np.array_split(order, max(1, round(count / self.config.batch_size)))

    def _step(self, x: Tensor, targets: Tensor, start: int, optimizer: Any) -> float:
        """Take one step and return its loss. Dropout is seeded by the step's number."""
        torch.manual_seed(derive_seed(self.config.seed, "step", self.position.step))
        logits = self.model(place_images(x, self.classifier), start)
        loss = self.strategy.loss(logits, targets.to(logits.device))
        value = loss.item()
        self._check_finite(value, "training loss")
        optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.config.gradient_clip:
            self.fabric.clip_gradients(
                self.model, optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
            )
        optimizer.step()
        self.position = self.position.model_copy(update={"step": self.position.step + 1})
        return value

    def _check_finite(self, loss: float, name: str) -> None:
        """Raise TrainingError loss-not-finite before anything of this epoch is saved."""
        if not np.isfinite(loss):
            reason = f"the {name} is {loss} at step {self.position.step + 1}; the last epoch before is kept"
            raise TrainingError("loss-not-finite", reason, where=self.run_folder.root, fix="lower the rate")

    @torch.inference_mode()
    def _validate(
        self, number: int, stores: tuple[FeatureStore, FeatureStore] | None
    ) -> tuple[NDArray, float]:
        self.classifier.eval()
        order = np.arange(len(self.data.val))
        batches = np.array_split(order, -(-len(order) // self.config.batch_size))
        reader = partial(stores[1].read, view=0) if stores else partial(self.data.val.read, view=0)
        start = self.plans[number].step if stores else 0
        loaded = self._load(reader, self.data.val_targets, batches)
        logits = torch.cat([self.model(place_images(x, self.classifier), start).float() for x, _ in loaded])
        targets = torch.from_numpy(self.data.val_targets).to(logits.device)
        loss = float(self.strategy.loss(logits, targets))
        self._check_finite(loss, "validation loss")
        return self.classifier.probabilities(logits).cpu().numpy(), loss

    def _load(
        self, read: Callable[[NDArray[np.int64]], Tensor], targets: NDArray, batches: list[NDArray[np.int64]]
    ) -> Iterator[Batch]:
        on_gpu = self.fabric.device.type == "cuda"
        reader = BatchReader(read, targets, batches)
        yield from DataLoader(reader, batch_size=None, num_workers=self.config.workers, pin_memory=on_gpu)

    def _save(self, optimizer: Any, improved: bool, row: Mapping[str, Any]) -> None:
        """Write history, the best checkpoint if it is one, and last the checkpoint to resume from."""
        header = self._header(val_loss=row["val_loss"], val_auroc=row["val_auroc"])
        model = model_tensors(self.classifier)
        if improved:
            save_checkpoint(self.run_folder.best, header, {"model": model})
        self._write_history()
        self._save_last(header, model, optimizer_tensors(optimizer.optimizer))
        self.run_folder.log("epoch", **row)

    def _header(self, **metrics: float | None) -> CheckpointHeader:
        return self.header.model_copy(update={"position": self.position, "metrics": metrics})

    def _save_last(
        self, header: CheckpointHeader, model: dict[str, Tensor], optimizer: dict[str, Tensor]
    ) -> None:
        save_checkpoint(self.run_folder.last, header, {"model": model, "optimizer": optimizer})

    def _write_history(self) -> None:
        with replacing(self.run_folder.history) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def _restore_last(self) -> None:
        header = read_header(self.run_folder.last)
        self.classifier.load_state_dict(read_tensors(self.run_folder.last, header, "model"))
        self.position = header.position
        rows = self.run_folder.read_history()
        self.history = [row for row in rows if int(row["step"]) <= self.position.step]

    def _load_model(self, folder: Any) -> None:
        self.classifier.load_state_dict(read_tensors(folder, read_header(folder), "model"))

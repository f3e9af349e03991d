"""SAMPLES -> CHECKPOINT by stages: unfreeze, cache the frozen prefix, train, validate, save the best."""

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.files import replacing
from medtl.core.progress import RESUME_RUN, StoppedError, Watcher, never, stopped
from medtl.errors import OutputError, TrainingError
from medtl.evaluation.metrics import Questions, auroc, mean_defined
from medtl.models.classifier import Classifier, Placement, lay_out
from medtl.training.averaging import Average, estimate_batch_norm
from medtl.training.batches import Batch, Indices, Loader, Order, split_evenly
from medtl.training.checkpoint import (
    HEADER,
    CheckpointHeader,
    Position,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_header,
    read_tensors,
    save_checkpoint,
)
from medtl.training.config import FitConfig, Select
from medtl.training.device import make_accelerator
from medtl.training.distributed import ProcessGroup, join_error
from medtl.training.feature_cache.cache import FeatureCache, FeatureStore, Views
from medtl.training.feature_cache.plan import CachePlan, StepViews, plan_cache, shared_views
from medtl.training.imbalance import IMBALANCE, ImbalanceStrategy
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import Pace, Stage, unfreeze
from medtl.training.step import LossSum, Stepper, anchors_of, make_optimizer

Stores = tuple[FeatureStore, FeatureStore]
Metrics = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class FitData:
    """Training and validation views with their targets, (N,) or (N, K)."""

    train: Views
    train_targets: NDArray
    val: Views
    val_targets: NDArray


@dataclass(frozen=True, eq=False)
class StageRun:
    """A stage while it runs: where its batches come from, and what they move."""

    number: int
    plan: CachePlan
    pace: Pace
    average: Average
    stepper: Stepper
    stores: Stores | None

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.pace.stage


class Fit:
    """One training run: its classifier, data, schedule, and how far it has come.

    Several processes that train it together make the same calls, and all end with the same weights.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: FitData,
        header: CheckpointHeader,
        config: FitConfig,
        run: RunFolder,
        watcher: Watcher,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.process_group = process_group or ProcessGroup()
        self.accelerator = make_accelerator(config, self.process_group)
        self.process_group.connect(self.accelerator.device)
        self.classifier = lay_out(classifier.to(self.accelerator.device))
        network: Any = torch.compile(self.classifier) if config.compile else self.classifier
        self.model: Callable[[Tensor, int], Tensor] = partial(self.accelerator.forward, network)
        self.process_group.broadcast_weights(self.classifier)
        # Before anything of an earlier session is loaded: the weights that the run began from.
        self.anchors = anchors_of(self.classifier, header.schedule)
        self.data = data
        self.stages = header.schedule
        self.config = config
        self.run_folder = run
        self.watcher = watcher
        make_strategy = partial(IMBALANCE[config.imbalance.name], **config.imbalance.options)
        self.strategy = make_strategy(classifier.task, data.train_targets)
        per_step = config.batch_size * config.accumulate
        self.order = Order(config.seed, len(data.train), self.strategy.sampling_weights, per_step)
        fewest = min(len(data.train) // self.order.steps, len(data.val))
        if fewest < self.process_group.size:
            reason = f"{self.process_group.size} processes cannot share {fewest} samples"
            raise join_error(reason, "start fewer, or raise fit.batch_size")
        self.files = RunFiles(run, header, self.classifier, self.process_group)
        self.stop: Callable[[], bool] = never
        self.position = Position()
        self.seconds: dict[str, float] = {}  # of each stage, earlier sessions of the run included
        self.plans: list[CachePlan] = []
        self._saved_at = time.perf_counter()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each epoch."""
        return self.files.history

    def run(self, *, resume: bool, stop: Callable[[], bool] = never) -> None:
        """Train through the schedule, from the last checkpoint where `resume` is set.

        stop is asked after each step; once it returns True, what was done is saved, within an epoch too, and
        StoppedError raised. The best checkpoint's weights are in the classifier afterwards. Raises
        TrainingError loss-not-finite, OutputError; the last checkpoint is whole in any case.
        """
        self.stop = stop
        resumed = resume and (self.run_folder.last / HEADER).is_file()
        if resumed:
            self.position = self.files.load_last()
        self.seconds = {str(row["stage"]): self._trained_seconds(str(row["stage"])) for row in self.history}
        self.plans = self.files.plans = self.files.plans or plan_cache(
            self.classifier,
            self.stages,
            self.data.train.image_shape,
            len(self.data.train),
            self.config.cache_gb * 1e9,
            held_out=len(self.data.val),
            epochs=[Pace(stage, self.order.steps).epochs for stage in self.stages],
        )
        first, former = self.position.stage, None
        with self._reporting_exhaustion():
            for number in range(first, len(self.stages)):
                former = self._run_stage(number, former, resumed and number == first)
        self.files.load_best()

    @contextmanager
    def _reporting_exhaustion(self) -> Iterator[None]:
        """Turn a full GPU or a loader process that was killed into one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            fix = "start a new run with a smaller fit.batch_size and a larger fit.accumulate"
            raise TrainingError(
                "out-of-memory", "GPU out of memory", where=self.run_folder.root, fix=fix
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            if self.stop():  # a signal to all processes of a run stops its loaders too
                raise self._stopped("as a loader process was; its last save is safe") from error
            fix = "set fit.workers=0 or free memory, then --resume"
            reason = "a loader process was killed"
            raise TrainingError("worker-lost", reason, where=self.run_folder.root, fix=fix) from error

    def _run_stage(
        self, number: int, former: torch.optim.Optimizer | None, resumed: bool
    ) -> torch.optim.Optimizer:
        """Train one stage to its end; return its optimizer."""
        started = time.perf_counter()
        stage, plan = self.stages[number], self.plans[number]
        self.watcher.stage(number + 1, len(self.stages), stage, plan)
        unfreeze(self.classifier, stage)
        at = self._enter_stage(number, former, resumed)
        while not self._is_over(at.pace):
            self._run_epoch(at)
        if self.position.epoch < at.pace.epochs:
            text = f"{stage.name} ends: no improvement for {stage.patience} epochs"
            self.watcher.note("note", text)
        if stage.restore_best:
            self.files.load_best()
        self.seconds[stage.name] = max(time.perf_counter() - started, self._trained_seconds(stage.name))
        return at.stepper.optimizer

    def _enter_stage(self, number: int, former: torch.optim.Optimizer | None, resumed: bool) -> StageRun:
        """Make what moves the weights, new or as it was saved."""
        stage = self.stages[number]
        pace = Pace(stage, self.order.steps)
        before = self.stages[number - 1] if number else None
        optimizer = make_optimizer(self.classifier, stage, before, former)
        average = Average(self.classifier, pace)
        if resumed:
            self.files.load_last_state(optimizer, average)
        else:
            moved = {"stage": number, "epoch": 0, "epochs_without_improvement": 0}
            self.position = self.position.model_copy(update=moved)
            if number:  # save where the stage begins before its epochs may change `best`
                self.files.save_last(self.position, optimizer, average, {})
        stores = None if self._is_over(pace) else self._feature_stores(number)
        stepper = Stepper(
            self.accelerator,
            self.model,
            self.classifier,
            optimizer,
            self.strategy,
            self.config,
            pace,
            start=self.plans[number].step if stores else 0,
            anchors=self.anchors,
            process_group=self.process_group,
            stop=self.stop,
            due=self._is_due,
        )
        return StageRun(number, self.plans[number], pace, average, stepper, stores)

    def _is_over(self, pace: Pace) -> bool:
        patience = pace.stage.patience
        out_of_patience = patience is not None and self.position.epochs_without_improvement >= patience
        return out_of_patience or self.position.epoch >= pace.epochs

    def _is_due(self) -> bool:
        """Return whether it is time to save by the clock of this process; the clocks of others may differ."""
        minutes = self.config.save_minutes
        return minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes

    def _trained_seconds(self, stage: str) -> float:
        return sum(float(row["seconds"]) for row in self.history if row["stage"] == stage)

    def _feature_stores(self, number: int) -> Stores | None:
        """Return the stage's training and validation activations, None where its prefix is not cached.

        One pass fills the stores of this stage and of the later ones on the same prefix; without room for all
        of these, those of this stage alone. A stage that finds no room trains without a cache, unless it
        began with one: the bits would differ.
        """
        plan = self.plans[number]
        if not plan.cached:
            return None
        shared, alone = shared_views(self.plans, number), {plan.step: plan.views}
        for requested in (shared, alone) if shared != alone else (shared,):
            try:
                train, val = self._fill_stores(requested)
            except OutputError as error:
                if error.code != "cache-full":
                    raise
                full = error
            else:
                return train[plan.step], val[plan.step]
        if self.position.epoch or self.position.done:
            raise full
        self.watcher.note("cache", f"{full}; the stage trains without a cache")
        self.plans[number] = plan.uncached(full.reason)
        return None

    def _fill_stores(self, requested: StepViews) -> tuple[dict[int, FeatureStore], dict[int, FeatureStore]]:
        cache = FeatureCache(
            self.classifier,
            self.accelerator.autocast,
            f"{self.accelerator.device.type} {self.accelerator.precision}",
            budget_bytes=self.config.cache_gb * 1e9,
            process_group=self.process_group,
        )

        def fill(views: Views, requested: StepViews, what: str) -> dict[int, FeatureStore]:
            def progress(done: int, total: int) -> None:
                self.watcher.progress(what, done, total)
                self._check_stop(f"with {done} of {total} images through the {what}")

            return cache.ensure(views, requested, progress, partial(self._check_stop, f"in the {what}"))

        train = fill(self.data.train, requested, "frozen prefix")
        return train, fill(self.data.val, dict.fromkeys(requested, 1), "frozen prefix, validation")

    def _check_stop(self, when: str) -> None:
        """Raise StoppedError where any process has requested a stop: a pass has nothing to save."""
        if self.process_group.stop_requested(self.stop()):
            raise self._stopped(when)

    def _run_epoch(self, at: StageRun) -> None:
        started = time.perf_counter() - self.position.seconds
        train_loss = self._train(at, started)
        try:
            metrics = self._validate(at)
        except StoppedError:
            self._save_last(at)
            raise
        row = {
            "stage": at.stage.name,
            "epoch": self.position.epoch,
            "step": self.position.step,
            "train_loss": train_loss,
            **metrics,
            "seconds": round(time.perf_counter() - started, 3),
            "cached": at.stores is not None,
        }
        self.files.record(row)
        self._save_last(at, metrics)
        if self.process_group.leads:
            self.run_folder.log("epoch", **row)
        self.watcher.epoch(row)

    def _train(self, at: StageRun, started: float) -> float:
        """Take the steps of an epoch that are not yet done; return the mean loss of all of them."""
        position, targets = self.position, self.data.train_targets
        steps = self.order.draw(at.number, position.epoch)[: at.pace.steps_of(position.epoch)]
        earlier, of_stage = position.step - position.done, position.epoch * at.pace.per_epoch
        losses = LossSum(position.loss_sum, partial(self._check_finite, "training loss"))

        def move_to(done: int) -> None:
            """Move the position to `done` steps of this epoch, after the `earlier` ones of all others."""
            at.average.synchronise(self.process_group)
            spent = time.perf_counter() - started
            moved = {"done": done, "step": earlier + done, "loss_sum": losses.total(), "seconds": spent}
            self.position = self.position.model_copy(update=moved)

        self.classifier.train()
        own = [self.process_group.split(step) for step in steps[position.done :]]
        batches = self._train_loader(at).steps(own, self.config.accumulate)
        for done, parts in enumerate(batches, position.done):
            whole = None if self.process_group.alone else torch.from_numpy(targets[steps[done]])
            result = at.stepper.step(parts, earlier + done, of_stage + done, whole)
            losses.add(result.loss, earlier + done + 1)
            at.average.after_step()
            self.watcher.progress(f"{at.stage.name} epoch {position.epoch + 1}", done + 1, len(steps))
            if result.stop or result.due:
                move_to(done + 1)
                self._save_last(at)
            if result.stop:
                raise self._stopped(f"after {done + 1} of {len(steps)} steps of epoch {position.epoch + 1}")
        move_to(len(steps))
        return self.position.loss_sum / len(steps)

    def _train_loader(self, at: StageRun) -> Loader:
        """Return the loader of this epoch's view: cycling where a prefix is frozen, otherwise always new."""
        view = self.position.epoch % at.stage.views
        if at.plan.step == 0:
            view = 1 + sum(before.epochs for before in self.stages[: at.number]) + self.position.epoch
        views = at.stores[0] if at.stores else self.data.train
        return self._loader(at, partial(views.read, view=view), self.data.train_targets)

    def _loader(self, at: StageRun, read: Callable[[Indices], Tensor], targets: NDArray) -> Loader:
        # A memory map is read faster than it could be handed from one process to another.
        workers = 0 if at.stores else self.config.workers
        return Loader(read, targets, workers, self.accelerator.device.type == "cuda")

    def _validate(self, at: StageRun) -> dict[str, float | None]:
        """Validate the weights after an epoch, move past it, and save them if they are the best so far."""
        at.average.after_epoch(self.position.epoch)
        start, group = at.stepper.start, self.process_group
        with at.average.applied():
            if at.average.needs_statistics:
                images = (batch for _, batch in self._share(self._train_loader(at)))
                estimate_batch_norm(self.model, self.classifier, images, start, group)
            views, targets = at.stores[1] if at.stores else self.data.val, self.data.val_targets
            batches = self._share(self._loader(at, partial(views.read, view=0), targets))
            loss, score = validate(self.model, self.classifier, self.strategy, batches, targets, start, group)
            self._check_finite("validation loss", loss, self.position.step + 1)
            metrics = {"val_loss": loss, "val_auroc": None if np.isnan(score) else score}
            before = self.position
            self.position = after_epoch(before, loss, score, self.config.select, at.stage.min_delta)
            if self.position.best != before.best:
                self.files.save_best(self.position, metrics)
        return metrics

    def _share(self, loader: Loader) -> Iterator[tuple[Indices, Batch]]:
        """Yield this process's batches of all samples, for as long as no stop is requested.

        Every process has as many of them.
        """
        group = self.process_group
        batches = split_evenly(len(loader.targets), self.config.batch_size, group.size)
        own = batches[group.rank :: group.size]
        for samples, batch in zip(own, loader.batches(own), strict=True):
            if group.any(self.stop()):
                raise self._stopped(f"while epoch {self.position.epoch + 1} was validated")
            yield samples, batch

    def _check_finite(self, name: str, loss: float, step: int) -> None:
        """Raise TrainingError loss-not-finite before anything that follows from it is saved."""
        if not np.isfinite(loss):
            reason = f"the {name} is {loss} at step {step}; the epoch before is saved"
            fix = "lower the learning rate"
            raise TrainingError("loss-not-finite", reason, where=self.run_folder.root, fix=fix)

    def _save_last(self, at: StageRun, metrics: Metrics | None = None) -> None:
        self.files.save_last(self.position, at.stepper.optimizer, at.average, metrics or {})
        self._saved_at = time.perf_counter()

    def _stopped(self, when: str) -> StoppedError:
        stage = self.stages[self.position.stage].name
        return stopped(f"in stage {stage} {when}", self.run_folder.root, RESUME_RUN)


@dataclass(eq=False)
class RunFiles:
    """Writes the checkpoints and the history of one run, and reads them back into its classifier.

    Of several processes the one that leads writes, and all read.
    """

    run: RunFolder
    header: CheckpointHeader
    classifier: Classifier
    process_group: ProcessGroup
    history: list[dict[str, Any]] = field(default_factory=list)
    plans: list[CachePlan] = field(default_factory=list)

    def save_best(self, position: Position, metrics: Metrics) -> None:
        """Save the classifier as it is as the best one."""
        if self.process_group.leads:
            tensors = {"model": model_tensors(self.classifier)}
            save_checkpoint(self.run.best, self._header(position, metrics), tensors)

    def save_last(
        self, position: Position, optimizer: torch.optim.Optimizer, average: Average, metrics: Metrics
    ) -> None:
        """Save all that resuming needs."""
        if not self.process_group.leads:
            return
        tensors = {"model": model_tensors(self.classifier), "optimizer": optimizer_tensors(optimizer)}
        if averaged := average.state():
            tensors["average"] = averaged
        save_checkpoint(self.run.last, self._header(position, metrics), tensors)

    def record(self, row: Mapping[str, Any]) -> None:
        """Add an epoch to history.csv."""
        self.history.append(dict(row))
        if not self.process_group.leads:
            return
        with replacing(self.run.history) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def load_best(self) -> None:
        """Put the best weights into the classifier, once they are written."""
        self.process_group.barrier()
        header = read_header(self.run.best)
        self.classifier.load_state_dict(read_tensors(self.run.best, header, "model"))

    def load_last(self) -> Position:
        """Load the last weights, the plans and the history up to them; return their position."""
        header = read_header(self.run.last)
        self.classifier.load_state_dict(read_tensors(self.run.last, header, "model"))
        self.plans = list(header.plans)
        position = header.position
        finished = position.step - position.done
        rows = self.run.read_history() if finished else []
        self.history = [row for row in rows if int(row["step"]) <= finished]
        return position

    def load_last_state(self, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Restore the optimizer and the average of the stage that was interrupted."""
        header = read_header(self.run.last)
        load_optimizer(optimizer, read_tensors(self.run.last, header, "optimizer"))
        if "average" in header.tensors:
            average.restore(read_tensors(self.run.last, header, "average"))

    def _header(self, position: Position, metrics: Metrics) -> CheckpointHeader:
        now = {"position": position, "metrics": dict(metrics), "plans": tuple(self.plans)}
        return self.header.model_copy(update=now)


def after_epoch(position: Position, loss: float, score: float, select: Select, min_delta: float) -> Position:
    """Return the position after an epoch of that validation loss and AUROC, NaN where it is undefined.

    The best epoch is better by any margin; patience counts only improvements of more than min_delta.
    """
    defined = -1.0 if math.isnan(score) else score
    reached = (defined, -loss) if select == "auroc" else (-loss, defined)
    best, best_score = position.best, position.best_score
    improved = best is None or reached > best
    counts = improved and (best_score is None or not min_delta or reached[0] > best_score[0] + min_delta)
    return position.model_copy(
        update={
            "epoch": position.epoch + 1,
            "done": 0,
            "loss_sum": 0.0,
            "seconds": 0.0,
            "best": reached if improved else best,
            "best_score": reached if counts else best_score,
            "epochs_without_improvement": 0 if counts else position.epochs_without_improvement + 1,
        }
    )


@torch.inference_mode()
def validate(
    model: Callable[[Tensor, int], Tensor],
    classifier: Classifier,
    strategy: ImbalanceStrategy,
    batches: Iterable[tuple[Indices, Batch]],
    targets: NDArray,
    start: int,
    process_group: ProcessGroup,
) -> tuple[float, float]:
    """Return the loss and the AUROC, NaN where it is undefined, over the samples of `targets`.

    batches: those of this process, each with the samples that are in it; they enter the classifier's chain at
    `start`. Several processes all get the numbers of the one that leads.
    """
    place = Placement(classifier.eval())
    logits = torch.zeros(len(targets), len(classifier.task.classes), device=place.device)
    for samples, (x, _) in batches:
        logits[torch.from_numpy(samples)] = model(place(x), start)
    process_group.sum(logits)
    loss = float(strategy.loss(logits, torch.from_numpy(targets).to(logits.device)))
    probabilities = classifier.probabilities(logits).double().cpu().numpy()
    score = float(mean_defined(auroc(Questions(probabilities, targets, classifier.task))))
    loss, score = process_group.broadcast((loss, score))
    return loss, score

"""The loop over stages: thaw, compute the frozen prefix once, train, validate, keep the best, go on."""

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.core.files import replacing
from medtl.core.progress import StoppedError, Watcher, never, stopped
from medtl.errors import OutputError, TrainingError
from medtl.evaluation.metrics import auroc, mean_defined, one_vs_rest
from medtl.models.classifier import Classifier, Placement, lay_out
from medtl.training.averaging import Average, estimate_batch_norm
from medtl.training.batches import (
    Batch,
    BatchReader,
    Indices,
    MakeReader,
    Order,
    load,
    load_steps,
    split_evenly,
)
from medtl.training.checkpoint import (
    CheckpointHeader,
    Position,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_header,
    read_tensors,
    save_checkpoint,
)
from medtl.training.config import FitConfig, Select, choose_precision, make_fabric
from medtl.training.distributed import World, unjoined
from medtl.training.feature_cache.cache import FeatureCache, FeatureStore, Views
from medtl.training.feature_cache.plan import CachePlan, Wanted, plan_cache, shared_views
from medtl.training.imbalance import NoCorrection, make_strategy
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
    optimizer: torch.optim.Optimizer
    average: Average
    stepper: Stepper
    stores: Stores | None

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.pace.stage


class Fit:
    """One training run: its classifier, data, schedule, and how far it has come.

    Several processes that train it together make the same calls of it; all of them come to the same weights.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: FitData,
        header: CheckpointHeader,
        config: FitConfig,
        run: RunFolder,
        watcher: Watcher,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.fabric = make_fabric(config, self.world)
        self.world.connect(self.fabric.device)
        self.classifier = lay_out(classifier)
        network: Any = torch.compile(self.classifier) if config.compile else self.classifier
        self.model = self.fabric.setup_module(network)
        self.world.align(self.classifier)
        # Before anything of an earlier session is loaded: the weights that the run began from.
        self.anchors = anchors_of(self.classifier, header.schedule)
        self.data = data
        self.stages = header.schedule
        self.config = config
        self.run_folder = run
        self.watcher = watcher
        self.strategy = make_strategy(config.imbalance, classifier.task, data.train_targets)
        per_step = config.batch_size * config.accumulate
        self.order = Order(config.seed, len(data.train), self.strategy.sampling_weights, per_step)
        self._check_enough()
        self.keeper = Keeper(run, header, self.classifier, self.world)
        self.stop: Callable[[], bool] = never
        self.position = Position()
        self.seconds: dict[str, float] = {}  # of each stage, earlier sessions of the run included
        self.plans: list[CachePlan] = []
        self._saved_at = time.perf_counter()

    def _check_enough(self) -> None:
        """Raise TrainingError world-unjoined where a process would have nothing to do in a step."""
        fewest = min(len(self.data.train) // self.order.steps, len(self.data.val))
        if fewest < self.world.size:
            reason = f"{self.world.size} processes cannot share {fewest} samples"
            raise unjoined(reason, "start fewer, or raise fit.batch_size")

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each epoch."""
        return self.keeper.history

    def run(self, *, resume: bool, stop: Callable[[], bool] = never) -> None:
        """Train through the schedule, from the last checkpoint where `resume` is set.

        stop is asked after each step; once it says so, what was done is saved, within an epoch too, and
        StoppedError raised. The best checkpoint's weights are in the classifier afterwards. Raises
        TrainingError loss-not-finite, OutputError; the last checkpoint is whole in any case.
        """
        self.stop = stop
        resumed = resume and self.keeper.has_last()
        if resumed:
            self.position = self.keeper.load_last()
        self.seconds = {str(row["stage"]): self._trained_seconds(str(row["stage"])) for row in self.history}
        self.plans = self.keeper.plans = self._plan()
        first, former = self.position.stage, None
        with self._telling_what_ran_out():
            for number in range(first, len(self.stages)):
                former = self._run_stage(number, former, resumed and number == first)
        self.keeper.load_best()

    @contextmanager
    def _telling_what_ran_out(self) -> Iterator[None]:
        """Turn a full GPU or a loader process that was killed into one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            fix = "lower fit.batch_size and raise fit.accumulate, in a new run"
            raise TrainingError(
                "out-of-memory", "the device is full", where=self.run_folder.root, fix=fix
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            if self.stop():  # whoever stops all processes of a run stops its loaders too
                raise self._stopped("as a loader process was; its last save is kept") from error
            fix = "set fit.workers=0 or free memory, then --resume"
            reason = "a loader process was killed"
            raise TrainingError("worker-lost", reason, where=self.run_folder.root, fix=fix) from error

    def _plan(self) -> list[CachePlan]:
        """Return what the run planned when it began, or plan now."""
        return plan_cache(
            self.classifier,
            self.stages,
            self.data.train.image_shape,
            len(self.data.train),
            self.config.cache_gb * 1e9,
            held_out=len(self.data.val),
            epochs=[Pace(stage, self.order.steps).epochs for stage in self.stages],
            recorded=self.keeper.plans,
        )

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
            text = f"{stage.name} ends: no better for {stage.patience} epochs"
            self.watcher.note("note", text)
        if stage.restore_best:
            self.keeper.load_best()
        self.seconds[stage.name] = max(time.perf_counter() - started, self._trained_seconds(stage.name))
        return at.optimizer

    def _enter_stage(self, number: int, former: torch.optim.Optimizer | None, resumed: bool) -> StageRun:
        """Make what moves the weights, as it was left or anew."""
        stage = self.stages[number]
        pace = Pace(stage, self.order.steps)
        before = self.stages[number - 1] if number else None
        optimizer = make_optimizer(self.classifier, stage, before, former)
        average = Average(self.classifier, pace)
        if resumed:
            self.keeper.load_last_state(optimizer, average)
        else:
            self._begin_stage(number, optimizer, average)
        stores = None if self._is_over(pace) else self._feature_stores(number)
        stepper = Stepper(
            self.fabric,
            self.model,
            self.classifier,
            optimizer,
            self.strategy,
            self.config,
            pace,
            start=self.plans[number].step if stores else 0,
            anchors=self.anchors,
            world=self.world,
            stop=self.stop,
            due=self._is_due,
        )
        return StageRun(number, self.plans[number], pace, optimizer, average, stepper, stores)

    def _begin_stage(self, number: int, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Move to a stage; from the second on, keep where it begins before its epochs may change `best`."""
        self.position = self.position.model_copy(
            update={"stage": number, "epoch": 0, "epochs_without_improvement": 0}
        )
        if number:
            self.keeper.save_last(self.position, optimizer, average, {})

    def _is_over(self, pace: Pace) -> bool:
        patience = pace.stage.patience
        spent = patience is not None and self.position.epochs_without_improvement >= patience
        return spent or self.position.epoch >= pace.epochs

    def _trained_seconds(self, stage: str) -> float:
        return sum(float(row["seconds"]) for row in self.history if row["stage"] == stage)

    def _feature_stores(self, number: int) -> Stores | None:
        """Return the stage's training and validation activations, None where its prefix is not cached.

        A stage that finds no room goes on without, unless it has begun with: other bits would come of that.
        """
        if not self.plans[number].cached:
            return None
        try:
            return self._ensure_stores(number)
        except OutputError as error:
            if error.code != "cache-full" or self.position.epoch or self.position.done:
                raise
            self.watcher.note("cache", f"{error}; the stage goes on without it")
            self.plans[number] = self.plans[number].uncached(error.reason)
            return None

    def _ensure_stores(self, number: int) -> Stores:
        """Open the stores that this stage and the later ones on the same prefix read; one pass makes them.

        Where there is no room for all of these, those of this stage alone.
        """
        plan, shared = self.plans[number], shared_views(self.plans, number)
        alone = {plan.step: plan.views}
        try:
            train, val = self._pass_over(shared)
        except OutputError as error:
            if error.code != "cache-full" or shared == alone:
                raise
            train, val = self._pass_over(alone)
        return train[plan.step], val[plan.step]

    def _pass_over(self, wanted: Wanted) -> tuple[dict[int, FeatureStore], dict[int, FeatureStore]]:
        cache = FeatureCache(
            self.classifier,
            self.fabric.autocast,
            self._precision,
            budget_bytes=self.config.cache_gb * 1e9,
        )
        train = self._ensure(cache, self.data.train, wanted, "frozen prefix")
        val = self._ensure(cache, self.data.val, dict.fromkeys(wanted, 1), "frozen prefix, validation")
        return train, val

    def _ensure(
        self, cache: FeatureCache, views: Views, wanted: Wanted, what: str
    ) -> dict[int, FeatureStore]:
        return cache.ensure(
            views,
            wanted,
            partial(self._pass_on, what),
            rank=self.world.rank,
            world=self.world.size,
            barrier=partial(self.world.barrier, partial(self._stop_pass, f"in the {what}")),
        )

    def _pass_on(self, what: str, done: int, total: int) -> None:
        """Show how far a pass has come, and end it where a stop is asked for: nothing of it need be saved."""
        self.watcher.progress(what, done, total)
        self._stop_pass(f"with {done} of {total} images through the {what}")

    def _stop_pass(self, when: str) -> None:
        if self.world.heard(self.stop()):
            raise self._stopped(when)

    @property
    def _precision(self) -> str:
        device = self.fabric.device.type
        return f"{device} {choose_precision(self.config, device == 'cuda')}"

    def _run_epoch(self, at: StageRun) -> None:
        started = time.perf_counter() - self.position.seconds
        train_loss = self._train(at, started)
        try:
            metrics = self._judge(at)
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
        self.keeper.record(row)
        self._save_last(at, metrics)
        if self.world.leads:
            self.run_folder.log("epoch", **row)
        self.watcher.epoch(row)

    def _train(self, at: StageRun, started: float) -> float:
        """Take the steps of an epoch that are not yet done; return the mean loss of all of them."""
        position = self.position
        steps = self.order.draw(at.number, position.epoch)[: at.pace.steps_of(position.epoch)]
        earlier, of_stage = position.step - position.done, position.epoch * at.pace.per_epoch
        losses = LossSum(position.loss_sum, partial(self._check_finite, "training loss"))
        self.classifier.train()
        for done, parts in enumerate(self._load_steps(at, steps[position.done :]), position.done):
            came = at.stepper.step(parts, earlier + done, of_stage + done, self._whole(steps[done]))
            losses.add(came.loss, earlier + done + 1)
            at.average.after_step()
            self.watcher.progress(f"{at.stage.name} epoch {position.epoch + 1}", done + 1, len(steps))
            if came.stop or came.due:
                at.average.agree(self.world)
                self._move_to(done + 1, earlier, losses, started)
                self._save_last(at)
            if came.stop:
                raise self._stopped(f"after {done + 1} of {len(steps)} steps of epoch {position.epoch + 1}")
        at.average.agree(self.world)
        self._move_to(len(steps), earlier, losses, started)
        return self.position.loss_sum / len(steps)

    def _load_steps(self, at: StageRun, steps: Sequence[Indices]) -> Iterator[list[Batch]]:
        """Yield this process's batches of each step."""
        own = [self.world.part(step) for step in steps]
        return load_steps(self._train_reader(at), own, self.config.accumulate, *self._loading(at))

    def _whole(self, step: Indices) -> Tensor | None:
        """Return the targets of a whole step, None where this process takes all of it."""
        return None if self.world.alone else torch.from_numpy(self.data.train_targets[step])

    def _move_to(self, done: int, earlier: int, losses: LossSum, started: float) -> None:
        """Move the position to `done` steps of this epoch, after the `earlier` ones of all others."""
        spent = time.perf_counter() - started
        moved = {"done": done, "step": earlier + done, "loss_sum": losses.total(), "seconds": spent}
        self.position = self.position.model_copy(update=moved)

    def _is_due(self) -> bool:
        """Return whether it is time to save by the clock of this process; others may find another answer."""
        minutes = self.config.save_minutes
        return minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes

    def _train_reader(self, at: StageRun) -> MakeReader:
        views = at.stores[0] if at.stores else self.data.train
        return partial(BatchReader, partial(views.read, view=self._view(at)), self.data.train_targets)

    def _val_reader(self, at: StageRun) -> MakeReader:
        views = at.stores[1] if at.stores else self.data.val
        return partial(BatchReader, partial(views.read, view=0), self.data.val_targets)

    def _view(self, at: StageRun) -> int:
        """Return which view this epoch trains on: rotating where a prefix is frozen, otherwise always new."""
        if at.plan.step > 0:
            return self.position.epoch % at.stage.views
        return 1 + sum(earlier.epochs for earlier in self.stages[: at.number]) + self.position.epoch

    def _loading(self, at: StageRun) -> tuple[int, bool]:
        """Return how many processes read, none where activations are cached, and whether into pinned memory.

        A memory map is read faster than it could be handed from one process to another.
        """
        return 0 if at.stores else self.config.workers, self.fabric.device.type == "cuda"

    def _judge(self, at: StageRun) -> dict[str, float | None]:
        """Validate what the epoch came to, move past it, and keep it if it is the best so far."""
        at.average.after_epoch(self.position.epoch)
        with at.average.applied():
            if at.average.needs_statistics:
                seen = (batch for _, batch in self._load(at, self._train_reader(at), len(self.data.train)))
                estimate_batch_norm(self.model, self.classifier, seen, at.stepper.start, self.world)
            batches, targets = self._load(at, self._val_reader(at), len(self.data.val)), self.data.val_targets
            judged = self.model, self.classifier, self.strategy, batches, targets
            loss, score = validate(*judged, at.stepper.start, self.world)
            self._check_finite("validation loss", loss, self.position.step + 1)
            metrics = {"val_loss": loss, "val_auroc": None if np.isnan(score) else score}
            before = self.position
            self.position = after_epoch(before, loss, score, self.config.select, at.stage.min_delta)
            if is_better(self.position, before):
                self.keeper.save_best(self.position, metrics)
        return metrics

    def _load(self, at: StageRun, make_reader: MakeReader, count: int) -> Iterator[tuple[Indices, Batch]]:
        """Yield this process's batches of all samples, for as long as no stop is asked for.

        Every process has as many of them.
        """
        batches = split_evenly(count, self.config.batch_size, self.world.size)
        own = batches[self.world.rank :: self.world.size]
        for samples, batch in zip(own, load(make_reader(own), *self._loading(at)), strict=True):
            if self.world.agree(self.stop()):
                raise self._stopped(f"while epoch {self.position.epoch + 1} was validated")
            yield samples, batch

    def _check_finite(self, name: str, loss: float, step: int) -> None:
        """Raise TrainingError loss-not-finite before anything that comes of it is saved."""
        if not np.isfinite(loss):
            reason = f"the {name} is {loss} at step {step}; the last epoch before is kept"
            raise TrainingError("loss-not-finite", reason, where=self.run_folder.root, fix="lower the rate")

    def _save_last(self, at: StageRun, metrics: Mapping[str, float | None] | None = None) -> None:
        self.keeper.save_last(self.position, at.optimizer, at.average, metrics or {})
        self._saved_at = time.perf_counter()

    def _stopped(self, when: str) -> StoppedError:
        return stopped(f"in stage {self.stages[self.position.stage].name} {when}", self.run_folder.root)


class Keeper:
    """Writes the checkpoints and the history of one run, and reads them back into its classifier.

    Of several processes the one that leads writes, and all read.
    """

    def __init__(
        self, run: RunFolder, header: CheckpointHeader, classifier: Classifier, world: World
    ) -> None:
        self.run = run
        self.header = header
        self.classifier = classifier
        self.world = world
        self.history: list[dict[str, Any]] = []
        self.plans: list[CachePlan] = []

    def has_last(self) -> bool:
        """Tell whether there is something to resume from."""
        return (self.run.last / "checkpoint.json").is_file()

    def save_best(self, position: Position, metrics: Metrics) -> None:
        """Keep the classifier as it is as the best one."""
        if self.world.leads:
            save_checkpoint(self.run.best, self._header(position, metrics), {"model": self._model()})

    def save_last(
        self, position: Position, optimizer: torch.optim.Optimizer, average: Average, metrics: Metrics
    ) -> None:
        """Keep all that training goes on from."""
        if not self.world.leads:
            return
        tensors = {"model": self._model(), "optimizer": optimizer_tensors(optimizer)}
        averaged = average.state()
        if averaged:
            tensors["average"] = averaged
        save_checkpoint(self.run.last, self._header(position, metrics), tensors)

    def record(self, row: Mapping[str, Any]) -> None:
        """Add an epoch to history.csv."""
        self.history.append(dict(row))
        if not self.world.leads:
            return
        with replacing(self.run.history) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def load_best(self) -> None:
        """Put the best weights into the classifier, once they are written."""
        self.world.barrier()
        header = read_header(self.run.best)
        self.classifier.load_state_dict(read_tensors(self.run.best, header, "model"))

    def load_last(self) -> Position:
        """Load the last weights, the plans and the history up to them; return where they stand."""
        header = read_header(self.run.last)
        self.classifier.load_state_dict(read_tensors(self.run.last, header, "model"))
        self.plans = list(header.plans)
        position = header.position
        finished = position.step - position.done
        rows = self.run.read_history() if finished else []
        self.history = [row for row in rows if int(row["step"]) <= finished]
        return position

    def load_last_state(self, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Give the optimizer and the average of the stage that was broken off their state back."""
        header = read_header(self.run.last)
        load_optimizer(optimizer, read_tensors(self.run.last, header, "optimizer"))
        if "average" in header.tensors:
            average.restore(read_tensors(self.run.last, header, "average"))

    def _model(self) -> dict[str, Tensor]:
        return model_tensors(self.classifier)

    def _header(self, position: Position, metrics: Metrics) -> CheckpointHeader:
        now = {"position": position, "metrics": dict(metrics), "plans": tuple(self.plans)}
        return self.header.model_copy(update=now)


def is_better(position: Position, before: Position) -> bool:
    """Return whether the epoch that led from `before` to `position` is the best so far."""
    return position.best != before.best


def after_epoch(position: Position, loss: float, score: float, select: Select, min_delta: float) -> Position:
    """Return the position after an epoch of that validation loss and AUROC, NaN where it is undefined.

    The best epoch is better by any margin; patience counts only improvements of more than min_delta.
    """
    reached = _rank(loss, score, select)
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


def _rank(loss: float, score: float, select: Select) -> tuple[float, float]:
    defined = -1.0 if math.isnan(score) else score
    return (defined, -loss) if select == "auroc" else (-loss, defined)


@torch.inference_mode()
def validate(
    model: nn.Module,
    classifier: Classifier,
    strategy: NoCorrection,
    batches: Iterable[tuple[Indices, Batch]],
    targets: NDArray,
    start: int,
    world: World,
) -> tuple[float, float]:
    """Return the loss and the AUROC, NaN where it is undefined, over the samples of `targets`.

    batches: those of this process, each with the samples that are in it; they enter the classifier's chain at
    `start`. Of several processes all get the numbers of the one that leads.
    """
    place = Placement(classifier.eval())
    logits = torch.zeros(len(targets), len(classifier.task.classes), device=place.device)
    for samples, (x, _) in batches:
        logits[torch.from_numpy(samples)] = model(place(x), start).float()
    world.sum(logits)
    loss = float(strategy.loss(logits, torch.from_numpy(targets).to(logits.device)))
    probabilities = classifier.probabilities(logits).cpu().numpy()
    loss, score = world.share(
        (loss, float(mean_defined(auroc(one_vs_rest(probabilities, targets, classifier.task.kind)))))
    )
    return loss, score

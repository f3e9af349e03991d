"""The optimizer step: the batches of one step go in, the weights move, the step's loss comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medtl.core.ids import derive_seed, make_generator
from medtl.core.progress import never
from medtl.models.classifier import Classifier, Placement
from medtl.training.batches import Batch
from medtl.training.config import FitConfig
from medtl.training.device import Accelerator
from medtl.training.distributed import ProcessGroup
from medtl.training.imbalance import ImbalanceStrategy
from medtl.training.schedule import Pace, Stage, entry_step, parameter_groups

Anchors = Mapping[nn.Parameter, Tensor]
Counters = tuple[int | str, ...]


class Step(NamedTuple):
    """The result of a step: its loss, not yet waited for; whether to stop, and whether it is time to save.

    It is the same in all processes: a request of one is enough.
    """

    loss: Tensor
    stop: bool
    due: bool


@dataclass(eq=False)
class Stepper:
    """Takes the steps of one stage.

    Everything that is random in a step is seeded by its number in the whole run, and by the part of it, so
    that a step can be repeated; also by the process, where several share it. model: from (batch, step where
    it enters the classifier's chain) to logits in 32 bits; batches enter at `start`, 0 for images. stop and
    due, whether it is time to save, are asked once a step.
    """

    accelerator: Accelerator
    model: Callable[[Tensor, int], Tensor]
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    strategy: ImbalanceStrategy
    config: FitConfig
    pace: Pace
    start: int
    anchors: Anchors
    process_group: ProcessGroup
    stop: Callable[[], bool] = never
    due: Callable[[], bool] = never

    def __post_init__(self) -> None:
        self.place = Placement(self.classifier)
        self.entry = entry_step(self.classifier, self.pace.stage)

    def step(self, parts: Sequence[Batch], number: int, of_stage: int, whole: Tensor | None = None) -> Step:
        """Take step `number` of the run, the stage's step `of_stage`.

        The gradient is that of the loss over all parts' samples together, for any weights of the strategy.
        whole: the targets of all processes' parts, where these are not all.
        """
        self.optimizer.zero_grad()
        process = () if self.process_group.alone else (f"process {self.process_group.rank}",)
        losses = []
        for part, ((x, targets), share) in enumerate(zip(parts, self._shares(parts, whole), strict=True)):
            loss = self._loss(x, targets, (number, *process, *((part,) if part else ())))
            loss = loss if share is None else loss * share
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        result = self._add_up(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        if self.config.gradient_clip:
            self.accelerator.clip(self.optimizer, self.config.gradient_clip)
        factors = {new: self.pace.learning_rate_factor(of_stage, new=new) for new in (False, True)}
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factors[group["new"]]
        with torch.no_grad():  # draw unfrozen weights to where the run began: w -= lr * l2_sp * (w - w0)
            for group in self.optimizer.param_groups:
                if group["pull"]:
                    anchors = [self.anchors[parameter] for parameter in group["params"]]
                    torch._foreach_lerp_(group["params"], anchors, group["lr"] * group["pull"])
        self.accelerator.step(self.optimizer)
        return result

    def _add_up(self, loss: Tensor) -> Step:
        """Add up gradients, losses, and requests to stop and to save over the processes."""
        requests = self.stop(), self.due()
        if self.process_group.alone:
            return Step(loss, *requests)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        extras = torch.cat([loss[None], loss.new_tensor(requests, dtype=loss.dtype)])
        sums = self.process_group.sum_gradients(trained, extras)
        return Step(sums[0], *(sums[1:] > 0).tolist())

    def _loss(self, x: Tensor, targets: Tensor, counters: Counters) -> Tensor:
        """Return the mean loss of one part; counters distinguish it from all other parts of the run."""
        device, smoothing = self.place.device, self.config.label_smoothing
        # What dropout draws from. torch.manual_seed would queue a seeding of CUDA, with the traceback of its
        # call, until CUDA is first used: without a GPU that takes as long as a step on pooled features, and
        # memory grows with each.
        seed = derive_seed(self.config.seed, "step", *counters)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        x, targets = self.place(x), targets.to(device, non_blocking=True)
        if not (self.config.mixup or self.config.cutmix):
            return self.strategy.loss(self.model(x, self.start), targets, smoothing)
        if self.start < self.entry:  # mix where the trained part of the stage begins
            with torch.no_grad(), self.accelerator.autocast():
                x = self.classifier.run(x, self.start, self.entry).float()
        generator = make_generator(self.config.seed, "mix", *counters)
        mixed = mix(x, self.config.mixup, self.config.cutmix, generator)
        logits = self.model(mixed.x, self.entry)
        own = self.strategy.loss(logits, targets, smoothing)
        other = self.strategy.loss(logits, targets[mixed.partners], smoothing)
        return mixed.share * own + (1 - mixed.share) * other

    def _shares(self, parts: Sequence[Batch], whole: Tensor | None) -> list[Tensor | None]:
        """Return the share of each part's mean loss in that of the step: its share of the weights."""
        if len(parts) == 1 and whole is None:
            return [None]
        weights = torch.stack([self._weight(targets) for _, targets in parts])
        total = weights.sum() if whole is None else self._weight(whole)
        shares = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
        return list(shares.to(self.place.device, non_blocking=True))

    def _weight(self, targets: Tensor) -> Tensor:
        """Return the sum of the weights of samples."""
        logits = torch.zeros(len(targets), len(self.classifier.task.classes))
        return self.strategy.loss_parts(logits, targets)[1]


class LossSum:
    """Adds up the losses of steps, each waited for when the next one has been launched.

    check(loss, number of the step) raises where a loss is not finite.
    """

    def __init__(self, before: float, check: Callable[[float, int], None]) -> None:
        self._sum, self._check = before, check
        self._pending: tuple[Tensor, int] | None = None

    def add(self, loss: Tensor, step: int) -> None:
        """Take in the loss of a step, and settle that of the step before."""
        self.total()
        self._pending = loss, step

    def total(self) -> float:
        """Return the sum of all losses."""
        if self._pending is not None:
            loss, step = self._pending[0].item(), self._pending[1]
            self._pending = None
            self._check(loss, step)
            self._sum += loss
        return self._sum


def make_optimizer(
    classifier: Classifier,
    stage: Stage,
    before: Stage | None = None,
    former: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Return AdamW for a stage, with the moments of the stage before, `former`, if it keeps them."""
    optimizer = torch.optim.AdamW(parameter_groups(classifier, stage, before))
    if former is not None and stage.optimizer_state == "keep":
        for group in optimizer.param_groups:
            optimizer.state.update({p: former.state[p] for p in group["params"] if p in former.state})
    return optimizer


def anchors_of(classifier: Classifier, stages: Sequence[Stage]) -> dict[nn.Parameter, Tensor]:
    """Return copies of the backbone's parameters as they are, for stages that pull towards them."""
    if not any(stage.l2_sp for stage in stages):
        return {}
    return {parameter: parameter.detach().clone() for parameter in classifier.backbone.parameters()}


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixed batch: x[i] is `share` of sample i and 1 - share of sample partners[i]; so is its loss."""

    x: Tensor
    partners: Tensor
    share: float


def mix(x: Tensor, mixup: float, cutmix: float, generator: np.random.Generator) -> Mixture:
    """Mix a batch (N, C, *spatial) or (N, F) with itself in one random order and share.

    mixup, cutmix: the parameter a of the Beta(a, a) distribution of the share, 0 for not at all; where both
    are above 0, each batch takes one of them by the toss of a coin. Cutmix pastes a box of the partner. What
    has no spatial axes, pooled features, has no boxes: there cutmix mixes linearly, as the mean over a map
    with a box from another one does on average.
    """
    boxed = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    share = float(generator.beta(cutmix, cutmix) if boxed else generator.beta(mixup, mixup))
    partners = torch.from_numpy(generator.permutation(len(x))).to(x.device)
    if not boxed or x.ndim <= 2:
        return Mixture(torch.lerp(x[partners], x, share), partners, share)
    # A box of 1 - share of the volume, less what lies beyond the edge.
    spatial = x.shape[2:]
    side = (1 - share) ** (1 / len(spatial))
    box = []
    for extent in spatial:
        length, centre = int(extent * side), int(generator.integers(extent))
        box.append(slice(max(0, centre - length // 2), min(extent, centre + length - length // 2)))
    mixed = x.clone()
    mixed[:, :, *box] = x[partners][:, :, *box]
    pasted = np.prod([part.stop - part.start for part in box]) / np.prod(spatial)
    return Mixture(mixed, partners, 1 - float(pasted))

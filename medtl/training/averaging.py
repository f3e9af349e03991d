"""Averages of the weights that a stage trains: what is validated, kept and scored in their place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

from medtl.models.classifier import Classifier, Placement
from medtl.training.batches import Batch
from medtl.training.distributed import World
from medtl.training.schedule import Pace

UPDATES = "updates"  # no tensor of a classifier: those have a dot in their names


class Average:
    """The mean over a stage's weights, beside those that are trained, or nothing where none is asked for.

    ema: the exponential moving average, moved after each step. Its decay begins low, min(decay,
    (1 + t) / (10 + t)) at update t as in TensorFlow, so that a short stage is not stuck where it began.
    swa: the equal mean of the weights after each of a stage's last epochs (Izmailov 2018); before these there
    is no average yet.

    Floating-point buffers are averaged with the weights. For batch norm that follows the data this is the
    custom for ema, whose networks differ little; the statistics of a swa network are none of theirs, and are
    estimated anew by a pass over the training data: see estimate_batch_norm.
    """

    def __init__(self, classifier: Classifier, pace: Pace) -> None:
        self.kind = pace.stage.average
        self.pace = pace
        self._classifier = classifier
        self.updates = 0
        self._trained = {} if self.kind == "none" else _trained_tensors(classifier)
        self._live = {name: x for name, x in self._trained.items() if x.is_floating_point()}
        self._mean = {name: tensor.clone() for name, tensor in self._live.items()}

    def after_step(self) -> None:
        """Move the moving average towards the weights."""
        if self.kind == "ema":
            decay = min(self.pace.stage.ema_decay, (1 + self.updates) / (10 + self.updates))
            self._move(1 - decay)

    def after_epoch(self, epoch: int) -> None:
        """Take the weights after an epoch, counted from 0, into the mean over epochs; once for each."""
        if self.kind == "swa" and epoch - self.pace.first_averaged_epoch >= self.updates:
            self._move(1 / (self.updates + 1))

    @torch.no_grad()
    def _move(self, weight: float) -> None:
        torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), weight)
        self.updates += 1

    def agree(self, world: World) -> None:
        """Give all processes the mean of the statistics that each gathered from its parts of the steps.

        Of the weights, and of their moving average: its mean over processes is the moving average of theirs.
        """
        if not world.alone:
            live = _following_statistics(self._classifier)
            world.average([*live.values(), *(self._mean[name] for name in live if name in self._mean)])

    @property
    def needs_statistics(self) -> bool:
        """Whether batch norm's statistics are not those of the averaged network."""
        return self.kind == "swa" and self.updates > 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average, if there is one yet, into the classifier; the trained weights come back after."""
        if not self.updates:
            yield
            return
        before = {name: tensor.clone() for name, tensor in self._trained.items()}
        _copy(self._mean, self._live)
        try:
            yield
        finally:
            _copy(before, self._trained)

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs: nothing before the first update."""
        if not self.updates:
            return {}
        means = {name: tensor.cpu().contiguous() for name, tensor in self._mean.items()}
        return {**means, UPDATES: torch.tensor(self.updates)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what state() returned."""
        if state:
            self.updates = int(state[UPDATES])
            _copy(state, self._mean)


@torch.inference_mode()
def estimate_batch_norm(
    model: nn.Module, classifier: Classifier, batches: Iterator[Batch], start: int, world: World
) -> None:
    """Estimate the statistics of batch norm that follows the data anew, from batches that enter at `start`.

    Everything else is in evaluation mode: these are the statistics that inference meets. Each batch counts
    alike, those of other processes too, of which each has as many. Nothing is read where nothing follows the
    data.
    """
    norms = _following_norms(classifier)
    if not norms:
        return
    place = Placement(classifier)
    with _averaging_statistics(norms):
        for x, _ in batches:
            model(place(x), start)
    world.average(tensor for norm in norms for tensor in _floats(norm).values())


def _following_statistics(classifier: Classifier) -> dict[str, Tensor]:
    """Return the statistics that training moves, by their names in the state dict; in training mode."""
    return {
        f"{name}.{key}": tensor
        for name, module in classifier.named_modules()
        if isinstance(module, NormBase) and module.training and module.track_running_stats
        for key, tensor in _floats(module).items()
    }


def _floats(norm: NormBase) -> dict[str, Tensor]:
    """Return the running statistics of a norm, without the count of its batches."""
    return {key: tensor for key, tensor in norm.named_buffers() if tensor.is_floating_point()}


def _following_norms(classifier: Classifier) -> list[BatchNorm]:
    """Return the batch norms whose statistics training moves; leave the classifier in evaluation mode."""
    norms = [module for module in classifier.train().modules() if isinstance(module, BatchNorm)]
    following = [norm for norm in norms if norm.training and norm.track_running_stats]
    classifier.eval()
    return following


@contextmanager
def _averaging_statistics(norms: Sequence[BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _trained_tensors(classifier: Classifier) -> dict[str, Tensor]:
    """Return the parameters and buffers that the stage may move, by their names in the state dict."""
    groups = classifier.backbone.layer_groups
    frozen = tuple(f"backbone.groups.{name}." for name in groups[: classifier.frozen])
    return {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith(frozen)}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])

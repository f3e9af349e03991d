"""Averages of the weights that a stage trains: what is validated, saved and scored in their place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from medtl.models.classifier import Classifier, Placement
from medtl.training.batches import Batch
from medtl.training.distributed import ProcessGroup
from medtl.training.schedule import Pace

UPDATES = "updates"  # no tensor of a classifier: those have a dot in their names


class Average:
    """The mean of a stage's weights, beside those that are trained; empty for a stage without average.

    ema: the exponential moving average, updated after each step. Its decay begins low, min(decay,
    (1 + t) / (10 + t)) at update t as in TensorFlow, so that a short stage is not stuck where it began.
    swa: the equal mean of the weights after each of a stage's last epochs (Izmailov 2018); before these there
    is no average yet.

    Floating-point buffers are averaged with the weights. For batch norm that follows the data this is the
    custom for ema, whose networks differ little; the statistics of a swa network belong to none of the
    averaged ones, and are estimated by a pass over the training data: see estimate_batch_norm.

    Not torch's AveragedModel: that copies and updates the frozen layers too, at each step, and takes over the
    first weights it is given where this average begins with the stage's.
    """

    def __init__(self, classifier: Classifier, pace: Pace) -> None:
        self.kind = pace.stage.average
        self.pace = pace
        self._classifier = classifier
        self.updates = 0
        groups = classifier.backbone.layer_groups[: classifier.frozen]
        frozen = tuple(f"backbone.groups.{name}." for name in groups)
        self._trained = {
            name: tensor
            for name, tensor in classifier.state_dict().items()
            if self.kind != "none" and not name.startswith(frozen)
        }
        self._live = {name: x for name, x in self._trained.items() if x.is_floating_point()}
        self._mean = {name: tensor.clone() for name, tensor in self._live.items()}

    def after_step(self) -> None:
        """Move the moving average towards the weights."""
        if self.kind == "ema":
            decay = min(self.pace.stage.ema_decay, (1 + self.updates) / (10 + self.updates))
            self._update(get_ema_multi_avg_fn(decay))

    def after_epoch(self, epoch: int) -> None:
        """Take the weights after an epoch, counted from 0, into the mean over epochs; once for each."""
        if self.kind == "swa" and epoch - self.pace.first_averaged_epoch >= self.updates:
            self._update(get_swa_multi_avg_fn())

    def _update(self, average: Callable[[list[Tensor], list[Tensor], int], None]) -> None:
        average(list(self._mean.values()), list(self._live.values()), self.updates)
        self.updates += 1

    def synchronise(self, process_group: ProcessGroup) -> None:
        """Give all processes the mean of the statistics that each gathered from its parts of the steps.

        Of the weights, and of their moving average: its mean over processes is the moving average of theirs.
        """
        if not process_group.alone:
            live = {
                f"{name}.{key}": tensor
                for name, module in self._classifier.named_modules()
                if isinstance(module, NormBase) and module.training and module.track_running_stats
                for key, tensor in _statistics(module).items()
            }
            process_group.average(
                [*live.values(), *(self._mean[name] for name in live if name in self._mean)]
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether batch norm's statistics are not those of the averaged network."""
        return self.kind == "swa" and self.updates > 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average, if there is one yet, into the classifier; the trained weights return after."""
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
        """Restore what state() returned."""
        if state:
            self.updates = int(state[UPDATES])
            _copy(state, self._mean)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _statistics(norm: NormBase) -> dict[str, Tensor]:
    """Return the running statistics of a norm, without the count of its batches."""
    return {key: tensor for key, tensor in norm.named_buffers() if tensor.is_floating_point()}


class _Norms(nn.Module):
    """The batch norms whose statistics update_bn estimates, and nothing else that it could touch."""

    def __init__(self, norms: list[BatchNorm], run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norms, self.run = nn.ModuleList(norms), run
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


@torch.inference_mode()
def estimate_batch_norm(
    model: Callable[[Tensor, int], Tensor],
    classifier: Classifier,
    batches: Iterator[Batch],
    start: int,
    process_group: ProcessGroup,
) -> None:
    """Estimate the statistics of batch norm that follows the data, from batches that enter at `start`.

    Everything else is in evaluation mode: these are the statistics that inference meets. Each batch has the
    same weight, those of other processes too, of which each has as many. Nothing is read where nothing
    follows the data.
    """
    modules = list(classifier.train().modules())
    norms = [m for m in modules if isinstance(m, BatchNorm) and m.training and m.track_running_stats]
    classifier.eval()
    if norms:
        place = Placement(classifier)
        update_bn((place(x) for x, _ in batches), _Norms(norms, lambda x: model(x, start)))
        process_group.average(tensor for norm in norms for tensor in _statistics(norm).values())

"""What each step of a classifier's chain costs for one image, counted from shapes, so the same everywhere."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from medtl.models.classifier import Classifier

FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepCost:
    """The forward pass of one step of the chain for one image.

    multiply_adds: of convolutions and matrix products. traffic_bytes: what all its operations write, which is
    what bounds depthwise convolutions and norms. largest_bytes: the largest tensor among that. output_shape:
    of the activations that leave the step, without the batch.
    """

    name: str
    multiply_adds: int
    traffic_bytes: int
    largest_bytes: int
    output_shape: tuple[int, ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of the activations that leave the step, in float32."""
        return FLOAT_BYTES * math.prod(self.output_shape)


_known: WeakKeyDictionary[Classifier, dict[tuple[int, ...], tuple[StepCost, ...]]] = WeakKeyDictionary()


def step_costs(classifier: Classifier, image: Tensor | Sequence[int]) -> tuple[StepCost, ...]:
    """Return the cost of each step of the chain: the layer groups, the pooling, the head.

    image: one image (1, C, *size), or its shape. Nothing is computed: the chain runs on the meta device, on a
    copy that has shapes and no numbers, and takes well under a second for the largest networks; what is known
    of a classifier is not counted again.
    """
    shape = tuple(image.shape if isinstance(image, Tensor) else image)
    known = _known.setdefault(classifier, {})
    if shape not in known:
        known[shape] = _count(classifier, shape)
    return known[shape]


def _count(classifier: Classifier, shape: tuple[int, ...]) -> tuple[StepCost, ...]:
    ghost = _without_numbers(classifier)
    x = torch.empty(shape, device="meta")
    costs = []
    for step, name in enumerate((*classifier.backbone.layer_groups, "pooling", "head")):
        with torch.no_grad(), FlopCounterMode(display=False) as flops, _Traffic() as traffic:
            x = ghost.head(x) if step == ghost.head_step else ghost.run(x, step, step + 1)
        # torch counts a multiplication and an addition as two operations
        multiply_adds = flops.get_total_flops() // 2
        costs.append(StepCost(name, multiply_adds, traffic.total, traffic.largest, tuple(x.shape[1:])))
    return tuple(costs)


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = getattr(func, "is_view", False)
        for tensor in () if is_view else result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                self.total += size
                self.largest = max(self.largest, size)
        return result


def _without_numbers(classifier: Classifier) -> Classifier:
    """Return a copy on the meta device, in evaluation mode; no memory is taken for its tensors."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False)
        for parameter in classifier.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in classifier.buffers()}
    return copy.deepcopy(classifier, memo).eval()

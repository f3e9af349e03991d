"""CLASSIFIER + SHAPE -> COSTS of each step of its chain for one image; the same on every machine."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from medtl.models.classifier import Classifier

FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepCost:
    """The forward pass of one step of the chain for one image.

    multiply_adds: of convolutions and matrix products. largest_bytes: the largest tensor that its operations
    write. output_shape: of the activations that leave the step, without the batch.
    """

    name: str
    multiply_adds: int
    largest_bytes: int
    output_shape: tuple[int, ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of the activations that leave the step, in float32."""
        return FLOAT_BYTES * math.prod(self.output_shape)


_known: WeakKeyDictionary[Classifier, dict[tuple[int, ...], tuple[StepCost, ...]]] = WeakKeyDictionary()


def step_costs(classifier: Classifier, image: Sequence[int]) -> tuple[StepCost, ...]:
    """Return the cost of each step of the chain: the layer groups, the pooling, the head.

    image: the shape of one image, (1, C, *size). Nothing is computed: a copy without numbers runs on the meta
    device, well under a second for the largest networks; a classifier's costs are remembered.
    """
    shape, known = tuple(image), _known.setdefault(classifier, {})
    if shape not in known:
        known[shape] = _count(classifier, shape)
    return known[shape]


def _count(classifier: Classifier, shape: tuple[int, ...]) -> tuple[StepCost, ...]:
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False)
        for parameter in classifier.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in classifier.buffers()}
    shapes_only = copy.deepcopy(classifier, memo).eval()  # no memory is taken for its tensors
    x = torch.empty(shape, device="meta")
    costs = []
    for step, name in enumerate((*classifier.backbone.layer_groups, "pooling", "head")):
        with torch.no_grad(), FlopCounterMode(display=False) as flops, _LargestTensor() as largest:
            head = step == shapes_only.head_step
            x = shapes_only.head(x) if head else shapes_only.run(x, step, step + 1)
        # torch counts a multiplication and an addition as two operations
        costs.append(StepCost(name, flops.get_total_flops() // 2, largest.bytes, tuple(x.shape[1:])))
    return tuple(costs)


class _LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation writes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = () if getattr(func, "is_view", False) else tree_leaves(result)
        sizes = [x.numel() * x.element_size() for x in written if isinstance(x, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result

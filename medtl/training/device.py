"""FIT CONFIG -> DEVICE AND PRECISION of this process: 32 bits, or half of them where that is safe."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from medtl.errors import TrainingError
from medtl.training.config import FitConfig, Precision
from medtl.training.distributed import ProcessGroup, join_error

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Accelerator:
    """A device and a precision: autocast around forward passes, and scaled losses in fp16."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device, self.precision = device, precision
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        half = HALF.get(self.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, half)

    def forward(self, model: Callable[[Tensor, int], Tensor], x: Tensor, start: int) -> Tensor:
        """Return the model's logits for activations x that enter at step `start`, in 32 bits."""
        with self.autocast():
            return model(x, start).float()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, of the scaled loss in fp16."""
        self._scaler.scale(loss).backward()

    def clip(self, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Scale the optimizer's gradients down where their common norm exceeds `norm`.

        Gradients that an earlier stage left in layers that are frozen now do not count.
        """
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights; in fp16 only where all gradients are finite."""
        self._scaler.step(optimizer)
        self._scaler.update()


def make_accelerator(config: FitConfig, process_group: ProcessGroup) -> Accelerator:
    """Return this process's device, in the precision asked for; `auto` is 32 bits on a CPU, half on a GPU.

    Raises TrainingError device-missing, world-unjoined.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device-missing", "no CUDA device is here", where="--device cuda", fix="use --device cpu"
        )
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if on_gpu and process_group.local >= torch.cuda.device_count():
        fix = f"start --nproc-per-node {torch.cuda.device_count()}, or train with --device cpu"
        raise join_error(f"there is no GPU for process {process_group.local + 1} of this machine", fix)
    if on_gpu:
        half: Precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        precision = half if config.precision == "auto" else config.precision
        return Accelerator(torch.device("cuda", process_group.local), precision)
    on_cpu: dict[str, Precision] = {"auto": "32-true", "16-mixed": "bf16-mixed"}  # CPUs have no fp16
    return Accelerator(torch.device("cpu"), on_cpu.get(config.precision, config.precision))

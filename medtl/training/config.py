"""How batches are drawn and steps are taken, on which device and in which precision."""

from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field

from medtl.errors import TrainingError
from medtl.evaluation.calibration import CalibrationMethod
from medtl.training.distributed import World, unjoined
from medtl.training.imbalance import ImbalanceConfig

Select = Literal["auroc", "loss"]


class FitConfig(BaseModel):
    """How batches are drawn and steps are taken.

    An optimizer step takes `accumulate` times `batch_size` samples, and the network sees batch_size of them
    at once: memory holds one part, and the gradient is that of all of them. Processes that train together
    share the step: see world.py. workers: processes that load and augment batches, for each that trains; the
    result does not depend on it.

    precision: `auto` is 32 bits on a processor, and bf16 (or fp16) mixed on a GPU; a resumed run is exact on
    a processor, and fp16 begins its loss scale anew. cache_gb bounds the disk that all cached
    activations below medtl's home may take together; 0 turns the cache off. compile: let torch.compile make
    kernels for the network, anew for each stage: worth its minutes in long stages on a GPU.

    imbalance: see imbalance.py. label_smoothing: the chance by which a label is replaced by any of the
    possible ones (Szegedy 2016). mixup, cutmix: the parameter a of the Beta(a, a) distribution by which a
    batch is mixed with itself, 0 for not at all: see mixing.py. The validation loss knows none of these.

    seed: of all that is drawn, but for the split. label_budget: learn from so many labelled training samples
    at most, whole patients; a larger budget of the same seed holds the smaller one.

    calibration: how the validation data correct the probabilities once training is over; isotonic regression
    wants a thousand validation samples or more (Niculescu-Mizil 2005).

    select: the best epoch is that of the highest validation AUROC (the lower loss where that is equal), or of
    the lowest validation loss; plateaus are judged by the same. save_minutes: within an epoch the run is
    saved whenever so many minutes have passed since it last was; null saves after epochs alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    label_budget: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    compile: bool = False
    imbalance: ImbalanceConfig = ImbalanceConfig(name="none")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0, le=100)
    cutmix: float = Field(default=0.0, ge=0, le=100)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    gradient_clip: float | None = Field(default=1.0, gt=0)
    select: Select = "auroc"
    save_minutes: float | None = Field(default=10.0, gt=0)
    cache_gb: float = Field(default=8.0, ge=0)
    calibration: CalibrationMethod = "auto"


def make_fabric(config: FitConfig, world: World) -> Fabric:
    """Return Fabric on this process's device, in the precision asked for.

    Raises TrainingError device-missing, world-unjoined.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device-missing", "no CUDA device is here", where="--device cuda", fix="use --device cpu"
        )
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if on_gpu and world.local >= torch.cuda.device_count():
        fix = f"start --nproc-per-node {torch.cuda.device_count()}, or train with --device cpu"
        raise unjoined(f"there is no GPU for process {world.local + 1} of this machine", fix)
    devices: Any = [world.local] if on_gpu else 1
    accelerator = "cuda" if on_gpu else "cpu"
    return Fabric(accelerator=accelerator, devices=devices, precision=choose_precision(config, on_gpu))


def choose_precision(config: FitConfig, on_gpu: bool) -> Any:
    """Return the precision asked for; `auto` is 32 bits on a processor and half precision on a GPU."""
    if config.precision != "auto":
        return config.precision
    half = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "16-mixed"
    return half if on_gpu else "32-true"

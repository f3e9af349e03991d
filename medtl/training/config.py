"""How batches are drawn and steps are taken: the recipe's section `fit`. Nothing here needs torch."""

import inspect
from typing import Any, Literal

from pydantic import BaseModel, Field, model_serializer, model_validator

from medtl.evaluation.calibration import CalibrationMethod

Select = Literal["auroc", "loss"]
# Names that need no look at imbalance.py, which imports torch.
STRATEGIES = (
    "none",
    "class-weighted",
    "effective-number",
    "balanced-sampler",
    "focal",
    "class-balanced-focal",
    "logit-adjustment",
)
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


class ImbalanceConfig(BaseModel, extra="forbid", frozen=True):
    """A strategy against class imbalance by its name, with those of its options that differ from the paper's.

    gamma: how strongly focal loss discounts what is already right. beta: how fast the effective number of
    samples saturates. tau: how much of the log prior is added. A plain name will do where no option is set.
    """

    name: str
    gamma: float | None = Field(default=None, ge=0, le=100)
    beta: float | None = Field(default=None, ge=0, lt=1)
    tau: float | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _name_is_a_strategy(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"name": value}

    @model_validator(mode="after")
    def _options_are_its_own(self) -> "ImbalanceConfig":
        if self.options:
            from medtl.training.imbalance import IMBALANCE  # which needs torch

            if self.name in IMBALANCE:  # RunConfig refuses a name that is not known
                alien = self.options.keys() - inspect.signature(IMBALANCE[self.name]).parameters.keys()
                if alien:
                    raise ValueError(f"{min(alien)} is no option of {self.name}")
        return self

    @model_serializer
    def _plain(self) -> str | dict[str, str | float]:
        return {"name": self.name, **self.options} if self.options else self.name

    @property
    def options(self) -> dict[str, float]:
        """The options that are set."""
        chosen = {"gamma": self.gamma, "beta": self.beta, "tau": self.tau}
        return {name: value for name, value in chosen.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{name} {value:g}" for name, value in self.options.items())])


def known_strategies(name: str) -> list[str]:
    """Return the names of all strategies; the registry is loaded only for a name that is none of ours."""
    if name in STRATEGIES:
        return list(STRATEGIES)
    from medtl.training.imbalance import IMBALANCE

    return list(IMBALANCE)


class FitConfig(BaseModel, extra="forbid", frozen=True):
    """How batches are drawn and steps are taken.

    An optimizer step takes `accumulate` times `batch_size` samples, and the network sees batch_size of them
    at once: memory holds one part, and the gradient is that of all of them. Processes that train together
    share the step: see distributed.py. workers: processes that load and augment batches, for each that
    trains; the result does not depend on it.

    precision: `auto` is 32 bits on a CPU, and bf16 (or fp16) mixed on a GPU; a resumed run is exact on a CPU,
    and fp16 restarts its loss scale. cache_gb bounds the disk that all cached activations below medtl's home
    may take together; 0 turns the cache off. compile: let torch.compile make kernels for the network, once
    for each stage: worth its minutes in long stages on a GPU.

    imbalance: see imbalance.py. label_smoothing: the chance by which a label is replaced by any of the
    possible ones (Szegedy 2016). mixup, cutmix: the parameter a of the Beta(a, a) distribution by which a
    batch is mixed with itself, 0 for not at all: see step.py. The validation loss knows none of these.

    seed: the random seed for everything except the data split. label_budget: learn from at most so many
    labelled training samples, whole patients; a larger budget of the same seed contains the smaller one.

    calibration: how the validation data correct the probabilities after training; isotonic regression needs a
    thousand validation samples or more (Niculescu-Mizil 2005).

    select: the best epoch has the highest validation AUROC (the lower loss where that is equal), or the
    lowest validation loss; patience goes by the same. save_minutes: within an epoch the run is saved whenever
    so many minutes have passed since the last save; null saves after epochs alone.
    """

    seed: int = 0
    label_budget: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
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

"""Checkpoints: tensors in safetensors, everything else in JSON; a checkpoint is whole or absent.

A checkpoint folder holds tensor files named by their content and one checkpoint.json that names them. The
JSON is replaced atomically and last, so that it always names files that are whole.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medtl.core import __version__
from medtl.core.files import make_folder, read_json, replacing, write_text
from medtl.data.task import Task
from medtl.errors import CheckpointError
from medtl.evaluation.calibration import Calibration, ConformalFloors
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.feature_cache.plan import CachePlan
from medtl.training.schedule import Stage

FORMAT_VERSION = 2
HEADER = "checkpoint.json"

# Names in format 1 -> names now.
OLD_NAMES = {"mark": "best_score", "waited": "epochs_without_improvement", "screening": "ood"}
# The tensor file of the out-of-distribution check.
TENSORS = "ood"


class Position(BaseModel, extra="forbid", frozen=True):
    """How far a schedule has come: `epoch` epochs of stage number `stage` are done, `step` steps in all.

    Of the next epoch `done` steps are done (they are among the `step`), with the losses `loss_sum` and in
    `seconds`. best is the score of the best epoch so far, the larger the better: (AUROC, minus loss) or
    (minus loss, AUROC) on validation data. Patience compares with best_score, the last one that was better by
    min_delta, and counts the epochs of this stage since then: epochs_without_improvement.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    done: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: tuple[float, float] | None = None
    best_score: tuple[float, float] | None = None
    epochs_without_improvement: int = 0


class TensorFile(BaseModel, extra="forbid", frozen=True):
    """The name and SHA-256 of one tensor file of a checkpoint."""

    file: str
    sha256: str


class OodLimits(BaseModel, extra="forbid", frozen=True):
    """Limits within which an image is like the training images; what they did not say is not checked.

    threshold: the distance of pooled features that a share `quantile` of the validation images keeps below.
    samples: how many training images it is measured from. modalities, body_parts: DICOM's terms for them.
    extents_mm: the smallest and largest extent of DICOM images along each of their axes.
    """

    threshold: float
    quantile: float
    samples: int
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    extents_mm: tuple[tuple[float, float], ...] = ()


class CheckpointHeader(BaseModel, extra="forbid", frozen=True):
    """Everything in a checkpoint but the tensors, as plain data."""

    format: int = FORMAT_VERSION
    medtl: str = __version__
    backbone: str
    in_channels: int
    dropout: float
    task_kind: Literal["binary", "multiclass", "multilabel"]
    classes: tuple[str, ...]
    weights: dict[str, str] | None
    preprocessing: PreprocessingConfig
    augmentation: AugmentationConfig
    schedule: tuple[Stage, ...]
    plans: tuple[CachePlan, ...] = ()
    position: Position = Position()
    metrics: dict[str, float | None] = {}
    thresholds: tuple[float, ...] | None = None
    calibration: Calibration | None = None
    conformal: ConformalFloors | None = None
    ood: OodLimits | None = None
    provenance: dict[str, str] = {}
    tensors: dict[str, TensorFile] = {}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A classifier in evaluation mode with all that scoring needs to know of it.

    ood: the tensors of the out-of-distribution check, none where the header has no limits.
    """

    classifier: Classifier
    header: CheckpointHeader
    folder: Path
    ood: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The classes that the classifier distinguishes."""
        return self.classifier.task

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """How images were prepared for it."""
        return self.header.preprocessing

    @property
    def sha256(self) -> str:
        """SHA-256 of the model's tensor file."""
        return self.header.tensors["model"].sha256

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each class; none in multiclass, where the most probable class wins."""
        cuts = () if self.task.kind == "multiclass" else self.header.thresholds or ()
        return dict(zip(self.task.asked_classes, cuts, strict=False))

    def for_any_modality(self) -> "Checkpoint":
        """Return the same checkpoint, which takes images of any modality and body part."""
        lenient = self.preprocessing.model_copy(update={"modalities": None, "body_parts": None})
        return replace(self, header=self.header.model_copy(update={"preprocessing": lenient}))


def describe_classifier(classifier: Classifier, dropout: float) -> dict[str, Any]:
    """Return the header fields that say how to build the classifier again."""
    weights = classifier.backbone.weights
    return {
        "backbone": classifier.backbone.name,
        "in_channels": classifier.backbone.in_channels,
        "dropout": dropout,
        "task_kind": classifier.task.kind,
        "classes": classifier.task.classes,
        "weights": asdict(weights) if weights else None,
    }


def save_checkpoint(
    folder: Path, header: CheckpointHeader, tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write a checkpoint so that the former one stays whole until the new one is.

    tensors: one mapping for each tensor file ("model", "optimizer", "average", "ood"). Raises
    OutputError.
    """
    make_folder(folder)
    files = {}
    for name, named in tensors.items():
        content = save(dict(sorted(named.items())))
        digest = hashlib.sha256(content).hexdigest()
        path = folder / f"{name}-{digest[:16]}.safetensors"
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        files[name] = TensorFile(file=path.name, sha256=digest)
    complete = header.model_copy(update={"tensors": files})
    write_text(folder / HEADER, complete.model_dump_json(indent=2) + "\n")
    for path in folder.glob("*.safetensors"):
        if path.name not in {file.file for file in files.values()}:
            path.unlink(missing_ok=True)


def read_header(folder: Path) -> CheckpointHeader:
    """Read checkpoint.json. Raises CheckpointError run-missing, checkpoint-damaged."""
    path = folder / HEADER
    if not path.is_file():
        raise CheckpointError(
            "run-missing",
            "no checkpoint here",
            where=folder,
            fix="give the folder of a medtl train run as the first argument",
        )
    try:
        values = read_json(path)
        version = values.get("format")
        if version not in (1, FORMAT_VERSION):
            reason = f"has format {version}, this medtl reads up to {FORMAT_VERSION}"
            raise CheckpointError("checkpoint-damaged", reason, where=path, fix="use the medtl that made it")
        header = CheckpointHeader.model_validate(_from_format_1(values) if version == 1 else values)
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError("checkpoint-damaged", "is not a checkpoint header", where=path) from error
    return header


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Return a header that medtl 0.1.0 wrote under today's names; stages know their own old keys."""
    position, tensors = _renamed(values.get("position", {})), _renamed(values.get("tensors", {}))
    return {**_renamed(values), "format": FORMAT_VERSION, "position": position, "tensors": tensors}


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def read_tensors(folder: Path, header: CheckpointHeader, name: str) -> dict[str, Tensor]:
    """Read one tensor file, its SHA-256 checked. Raises CheckpointError checkpoint-damaged.

    It is not memory-mapped: the next checkpoint removes the file, which Windows refuses for a mapped one.
    """
    entry = header.tensors.get(name)
    path = folder / (Path(entry.file).name if entry else "absent")
    content = path.read_bytes() if path.is_file() else b""
    if entry is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        reason = f"the {name} tensors are absent or altered"
        raise CheckpointError("checkpoint-damaged", reason, where=folder, fix="use the other checkpoint")
    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError("checkpoint-damaged", "is not safetensors", where=path) from error


def load_checkpoint(run: str | Path, which: Literal["best", "last"] = "best") -> Checkpoint:
    """Load a checkpoint of a run folder (or a checkpoint folder itself), ready to score.

    Raises CheckpointError run-missing, checkpoint-damaged.
    """
    folder = Path(run) if (Path(run) / HEADER).is_file() else Path(run) / "checkpoints" / which
    header = read_header(folder)
    classifier = build_classifier(header, folder)
    try:
        classifier.load_state_dict(read_tensors(folder, header, "model"))
    except RuntimeError as error:
        reason = f"its tensors are not those of {header.backbone}"
        raise CheckpointError("checkpoint-damaged", reason, where=folder) from error
    ood = read_tensors(folder, header, TENSORS) if header.ood else {}
    return Checkpoint(classifier.eval(), header, folder, ood)


def build_classifier(header: CheckpointHeader, folder: Path) -> Classifier:
    """Build the classifier that a header describes, without weights."""
    if header.backbone not in BACKBONES:
        reason = f"its backbone {header.backbone} is not known"
        raise CheckpointError("checkpoint-damaged", reason, where=folder, fix="use the medtl that made it")
    backbone = BACKBONES[header.backbone](weights=None, in_channels=header.in_channels)
    return Classifier(backbone, Task(header.task_kind, header.classes), header.dropout)


def model_tensors(classifier: Classifier) -> dict[str, Tensor]:
    """Return the classifier's state on the CPU, laid out plainly."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state to named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": value.cpu().contiguous() for i, slots in state.items() for key, value in slots.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that optimizer_tensors flattened, each moment laid out as its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)].detach()
        moment = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[key] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_finished(run: Path, *, any_modality: bool = False) -> Checkpoint:
    """Load a run's best checkpoint with its thresholds. Raises CheckpointError run-unfinished.

    any_modality: take images whose files name a modality or body part that the model is not for.
    """
    checkpoint = load_checkpoint(run)
    if checkpoint.header.thresholds is None:
        fix = "resume it with medtl train --resume"
        raise CheckpointError("run-unfinished", "training was not finished", where=run, fix=fix)
    return checkpoint.for_any_modality() if any_modality else checkpoint

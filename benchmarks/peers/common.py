"""What all peers share: images in memory, network, loss, learning rates, clock and score."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandFlip
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.peers.job import Job, Phase, job_of_command_line, write_result
from medtl.core.ids import derive_seed
from medtl.data.task import Task
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier

# The augmentation of configs/mri-slices.yaml.
ROTATE_DEGREES, SCALE, TRANSLATE, GAMMA = 10.0, 0.1, 0.05, 0.2


@dataclass(frozen=True, eq=False)
class Images:
    """Prepared images in [0, 1], float32 (N, 1, H, W), and their classes, int64 (N,)."""

    train: Tensor
    train_targets: Tensor
    val: Tensor
    val_targets: Tensor
    classes: tuple[str, ...]

    @property
    def task(self) -> Task:
        """The task that medtl makes of them."""
        return Task("binary" if len(self.classes) == 2 else "multiclass", self.classes)


@dataclass(frozen=True, eq=False)
class Trained:
    """The network with the weights of its best validation epoch, and how many optimizer steps were taken."""

    classifier: Classifier
    steps: int


@dataclass
class Clock:
    """Seconds of each phase: start, then lap after each."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = 0.0

    def start(self) -> None:
        """Begin the first phase."""
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase, and begin the next."""
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


Train = Callable[[Job, Images, Path, Clock], Trained]


def run_peer(train: Train) -> None:
    """Do the job of the command line in this process, and leave result.json."""
    job, folder = job_of_command_line()
    images, clock = load_images(Path(job.images)), Clock()
    trained = train(job, images, folder, clock)
    peak, scoring = peak_mib(resource.RUSAGE_SELF), time.perf_counter()
    auroc = macro_auroc(trained.classifier, images)
    write_result(
        folder,
        seconds=clock.seconds,
        scoring=time.perf_counter() - scoring,
        peak_mib=peak,
        auroc=auroc,
        steps=trained.steps,
    )


def peak_mib(who: int) -> float:
    """Return the peak resident memory of this process or of its largest child."""
    units = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(who).ru_maxrss / units


def load_images(path: Path) -> Images:
    """Read what benchmarks.peers.images wrote."""
    with np.load(path) as arrays:
        classes = tuple(str(name) for name in arrays["classes"])
        names = ("train", "train_targets", "val", "val_targets")
        train, train_targets, val, val_targets = (torch.from_numpy(arrays[name]) for name in names)
        return Images(train, train_targets, val, val_targets, classes)


def make_classifier(job: Job, images: Images) -> Classifier:
    """Return medtl's own network, on the device and channels last, its head initialised as in medtl."""
    torch.manual_seed(derive_seed(job.seed, "backbone"))
    backbone = BACKBONES[job.backbone](weights=job.weights, in_channels=1)
    torch.manual_seed(derive_seed(job.seed, "head"))
    classifier = Classifier(backbone, images.task, job.dropout)
    torch.manual_seed(job.seed)
    return classifier.to(job.device, memory_format=torch.channels_last)


def top_groups(classifier: Classifier, phase: Phase) -> list[nn.Module]:
    """Return the layer groups that a phase trains."""
    groups = list(classifier.backbone.groups.values())
    return groups[len(groups) - min(phase.groups, len(groups)) :]


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step, as in medtl: linear warm-up, half a cosine."""
    rising = max(1, round(total * warmup)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def augmentations(size: int) -> list:
    """Return the MONAI random transforms that medtl's own augmentation consists of."""
    return [
        RandAffine(
            prob=1.0,
            rotate_range=math.radians(ROTATE_DEGREES),
            scale_range=(SCALE, SCALE),
            translate_range=(TRANSLATE * size,) * 2,
            padding_mode="zeros",
            cache_grid=True,
            spatial_size=(size, size),
        ),
        RandFlip(prob=0.5, spatial_axis=1),
        RandAdjustContrast(prob=1.0, gamma=(1 - GAMMA, 1 + GAMMA)),
    ]


class RandomViews(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory that return a new random view on each access."""

    def __init__(self, pixels: Tensor, targets: Tensor, job: Job) -> None:
        self.pixels, self.targets = pixels, targets
        self.transform = Compose(augmentations(job.size)).set_random_state(job.seed)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(self.transform(self.pixels[index])), self.targets[index]


def make_loaders(job: Job, images: Images) -> tuple[DataLoader, DataLoader]:
    """Return PyTorch's loaders over training images, shuffled, and validation images."""
    train: Dataset = TensorDataset(images.train, images.train_targets)
    if job.augment:
        train = RandomViews(images.train, images.train_targets, job)
    generator = torch.Generator().manual_seed(job.seed)
    val, pinned = TensorDataset(images.val, images.val_targets), job.device == "cuda"
    return (
        DataLoader(train, job.batch, shuffle=True, generator=generator, pin_memory=pinned),
        DataLoader(val, job.batch, pin_memory=pinned),
    )


def to_score(probabilities: NDArray, targets: NDArray) -> float:
    """Return scikit-learn's AUROC: of the second of two classes, or each against the rest, averaged."""
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return float(roc_auc_score(targets, scores, multi_class="ovr"))


@torch.inference_mode()
def macro_auroc(classifier: Classifier, images: Images) -> float:
    """Return the AUROC of the validation images."""
    classifier.eval()
    batches = images.val.split(64)
    device = next(classifier.parameters()).device
    logits = torch.cat([classifier(x.to(device, memory_format=torch.channels_last)) for x in batches])
    return to_score(logits.softmax(1).cpu().numpy(), images.val_targets.numpy())

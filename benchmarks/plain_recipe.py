"""The recipe many would write by hand, to compare wall time with: timm, PyTorch, two phases, no cache.

python -m benchmarks.plain_recipe DATA RUN: the same network, weights, images and split as the medtl run RUN;
3 epochs of the head, 4 of everything, AdamW, one-cycle, 160 px, batches of 32. Prints one JSON line.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from medtl.data.manifest import load_manifest
from medtl.data.splits import read_splits
from medtl.data.task import TaskConfig
from medtl.models.backbones.efficientnet import EFFICIENTNET_LITE0
from medtl.models.timm_network import rename_by_position
from medtl.models.weight_files import locate
from medtl.models.weights import read_state_dict

SIZE, BATCH, HEAD_EPOCHS, FULL_EPOCHS = 160, 32, 3, 4
NORMALISE = transforms.Normalize([0.5] * 3, [0.5] * 3)
TRAIN = transforms.Compose(
    [
        transforms.Resize((SIZE, SIZE)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
        transforms.ToTensor(),
        NORMALISE,
    ]
)
VAL = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), NORMALISE])


class Files(Dataset):
    """Image files with their class, decoded whenever they are asked for."""

    def __init__(self, samples: list, transform: transforms.Compose) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, target = self.samples[index]
        return self.transform(Image.open(path).convert("RGB")), target


def make_network(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 with ImageNet weights and a new head."""
    name = "tf_efficientnet_lite0"
    net = timm.create_model(name, num_classes=1000)
    net.load_state_dict(
        rename_by_position(read_state_dict(locate(EFFICIENTNET_LITE0.known_weights[0])), name), strict=False
    )
    net.reset_classifier(classes)
    return net


def train_phase(net: nn.Module, loader: DataLoader, val: DataLoader, epochs: int, rate: float) -> float:
    """Train what requires a gradient; return the last validation AUROC."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(loader))
    score = float("nan")
    for _ in range(epochs):
        net.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        score = validate(net, val)
        print(f"  AUROC {score:.4f}", file=sys.stderr)
    return score


@torch.inference_mode()
def validate(net: nn.Module, loader: DataLoader) -> float:
    """Return the macro AUROC."""
    net.eval()
    found = [(net(x).softmax(1), y) for x, y in loader]
    probabilities, targets = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return float(roc_auc_score(targets, probabilities, multi_class="ovr"))


def main(data: Path, run: Path) -> None:
    """Train on the split of a medtl run and print the result."""
    torch.manual_seed(0)
    manifest = load_manifest(data, None, TaskConfig())
    split = read_splits(run / "splits.csv")
    parts = {
        part: [(s.series.files[0], s.target) for s in manifest.samples if split[s.sample_id].split == part]
        for part in ("train", "val")
    }
    train = DataLoader(Files(parts["train"], TRAIN), BATCH, shuffle=True)
    val = DataLoader(Files(parts["val"], VAL), BATCH)
    started = time.perf_counter()
    net = make_network(len(manifest.task.classes))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.classifier.requires_grad_(True)
    train_phase(net, train, val, HEAD_EPOCHS, 3e-3)
    head_seconds = time.perf_counter() - started
    net.requires_grad_(True)
    score = train_phase(net, train, val, FULL_EPOCHS, 1e-3)
    seconds = time.perf_counter() - started
    print(json.dumps({"auroc": score, "seconds": round(seconds, 1), "head_seconds": round(head_seconds, 1)}))


if __name__ == "__main__":
    np.random.seed(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

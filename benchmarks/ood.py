"""Measure whether a model of chest X-rays notices other images: AUROC for brain MRI and photographs.

python -m benchmarks.ood [--data DIR] [--labels N] [--images N] [--photographs DIR] [--out DIR]

Trains with the recipe for X-rays on N labels of PneumoniaMNIST at 96 px, then scores chests that it never
saw (training images outside the label budget), brain MR slices, and crops of photographs. The chests are
28 x 28, and sharpness alone would give the others away: these are scored once as they are, and once reduced
to 28 x 28. DIR as for benchmarks.main_job. Photographs are those that come with scikit-learn, matplotlib and,
if installed, scikit-image, or those of a folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.main_job import DEFAULT_DATA
from medtl.cli.terminal import TerminalWatcher
from medtl.config import load_config
from medtl.data.splits import draw_labels
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.preprocessing import prepare_image
from medtl.inference.predictor import measure_distances, predict_features
from medtl.training.checkpoint import Checkpoint, load_checkpoint
from medtl.workflows.train import open_data

SETTINGS = (
    "preprocessing.size=[96,96]",
    "schedule.views=1",
    "schedule.head_epochs=5",
    "schedule.unfrozen_epochs=4",
)
CROPS = 8
SIDE = 28
# Of scikit-image's images those that are photographs.
SKIMAGE = (
    *(
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "clock_motion.png",
        "coffee.png",
        "coins.png",
    ),
    *("color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png"),
    *("page.png", "rocket.jpg"),
)


def train(data: Path, run: Path, labels: int) -> None:
    """Train with `medtl train`, unless the run exists."""
    if (run / "metrics.json").is_file():
        return
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["train", "--modality", "xray", "--data", str(data), "--label-budget", str(labels), *settings]
    subprocess.run(
        [sys.executable, "-m", "medtl", *command, "--out", str(run)], check=True, stdout=subprocess.DEVNULL
    )


def unseen_chests(data: Path, labels: int, count: int) -> Tensor:
    """Return prepared training images (N, C, H, W) that the budget of the run left out."""
    with TerminalWatcher("chests that the model never saw") as watcher:
        opened = open_data(data, None, load_config("xray", None, SETTINGS), watcher)
    drawn = draw_labels(opened.samples, opened.task, labels, 0)
    taught = {sample.sample_id for sample in drawn}
    idle = [sample for sample in opened.samples if sample.sample_id not in taught]
    chosen = np.random.default_rng(0).permutation(len(idle))[:count]
    return opened.prepared.read(opened.prepared.rows_of([idle[place] for place in chosen]))


def brains(folder: Path, count: int) -> list[np.ndarray]:
    """Return grey brain MR slices, uint8 (H, W)."""
    paths = sorted(folder.rglob("*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [_read_grey(paths[place]) for place in chosen]


def photographs(folder: Path | None) -> list[np.ndarray]:
    """Return square crops of grey photographs, uint8 (H, W), CROPS of each."""
    generator, crops = np.random.default_rng(0), []
    for path in _photograph_paths(folder):
        pixels = _read_grey(path)
        for _ in range(CROPS):
            side = int(min(pixels.shape) * generator.uniform(0.4, 1))
            row, column = (int(generator.integers(extent - side + 1)) for extent in pixels.shape)
            crops.append(pixels[row : row + side, column : column + side])
    return crops


def _photograph_paths(folder: Path | None) -> list[Path]:
    if folder is not None:
        return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    found = [*_package("sklearn", "datasets/images").glob("*.jpg")]
    found.append(_package("matplotlib", "mpl-data/sample_data") / "grace_hopper.jpg")
    if find_spec("skimage"):
        found += [_package("skimage", "data") / name for name in SKIMAGE]
    return sorted(path for path in found if path.is_file())


def _package(name: str, folder: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / folder


def _read_grey(path: Path) -> np.ndarray:
    return np.asarray(PillowImage.open(path).convert("L"))


def reduced(pixels: np.ndarray) -> np.ndarray:
    """Return an image reduced to the size of the chests."""
    return np.asarray(PillowImage.fromarray(pixels).resize((SIDE, SIDE), PillowImage.Resampling.BILINEAR))


def prepare(pixels: Sequence[np.ndarray], checkpoint: Checkpoint) -> Tensor:
    """Return images (N, C, H, W) of which nothing but the pixels is known, prepared for a model."""
    facts = ImageFacts("benchmark", "raster")
    images = (Image(one[None].astype(np.float32), None, None, facts) for one in pixels)
    prepared = [prepare_image(image, checkpoint.preprocessing).pixels for image in images]
    return torch.from_numpy(np.stack(prepared))


def measure(checkpoint: Checkpoint, images: Tensor) -> np.ndarray:
    """Return the distance of each prepared image from the training images, as scoring takes it."""
    found = [
        measure_distances(checkpoint, predict_features(checkpoint, part)[1]) for part in images.split(32)
    ]
    return np.concatenate(found)


def report(run: Path, chests: Tensor, others: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Print a row for each kind of image."""
    checkpoint = load_checkpoint(run)
    ood = checkpoint.header.ood
    assert ood is not None
    near = measure(checkpoint, chests)
    size = sum(tensor.nbytes for tensor in checkpoint.ood.values())
    print(f"{ood.samples} training images; {size / 1e3:.0f} kB in the checkpoint")
    print("| images | number | AUROC against chests | called far |\n| --- | --- | --- | --- |")
    print(f"| chests that it never saw | {len(near)} | | {(near > ood.threshold).mean():.1%} |")
    for name, pixels in others.items():
        far = measure(checkpoint, prepare(pixels, checkpoint))
        truth = np.repeat([0, 1], [len(near), len(far)])
        area = roc_auc_score(truth, np.concatenate([near, far]))
        print(f"| {name} | {len(far)} | {area:.4f} | {(far > ood.threshold).mean():.1%} |")


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if not chosen.data.is_dir():
        parser.error(f"{chosen.data} is not here: name the folder of real images with --data")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-ood-"))
    os.environ.setdefault("MEDTL_HOME", str(out / "home"))
    archive = chosen.data / "chest-xray-pneumonia" / "pneumoniamnist.npz"
    train(archive, out / "run", chosen.labels)
    sharp = {
        "brain MR slices": brains(chosen.data / "brain-mri-tumour", chosen.images),
        "photographs": photographs(chosen.photographs),
    }
    small = {f"{name}, reduced": list(map(reduced, pixels)) for name, pixels in sharp.items()}
    report(out / "run", unseen_chests(archive, chosen.labels, chosen.images), sharp | small)


if __name__ == "__main__":
    main()

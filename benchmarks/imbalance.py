"""Compare the strategies against class imbalance for a rare finding: prints a row for each.

python -m benchmarks.imbalance [--data DIR] [--out DIR] [--ratios N ..] [--seeds N] [--only NAME ..]
[--unfreeze]

DIR holds chest-xray-pneumonia/ (PneumoniaMNIST of MedMNIST v2). Pneumonia, most of the archive, is made rare:
1:N in both training and validation data, since a threshold is chosen on data that are as scarce as those for
training. Each seed assigns the 1,214 normal images of the archive's training part (three quarters train) with
its own few pneumonias, and initialises the head. All runs are evaluated on the archive's own validation part,
which no run has seen: on all of its images, with the pneumonias weighted down to 1:N as well, so that AUPRC
and calibration error are those of the prevalence trained for (sensitivity, specificity and balanced accuracy
do not depend on it).

EfficientNet-Lite0 from ImageNet at 64 px, frozen: only the head is trained, on cached features. With
--unfreeze the top two layer groups are trained after it, for 4 epochs. Intervals are Student's t over the
seeds, 95%: they cover other splits and heads, not other evaluation images. Differences from `none` are paired
by seed. Rows that --out already holds are not run again.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.main_job import DEFAULT_DATA
from medtl.config import RunConfig, load_config
from medtl.core.ids import make_generator
from medtl.data.manifest import load_manifest, targets
from medtl.data.prepared import prepare_samples
from medtl.evaluation import metrics
from medtl.evaluation.calibration_metrics import bin_gaps, calibration_errors
from medtl.training.checkpoint import Checkpoint, load_checkpoint
from medtl.training.imbalance import IMBALANCE
from medtl.training.schedule import entry_step
from medtl.workflows.train import train_run

VALIDATION_SHARE = 0.25
FROZEN = (
    "preprocessing.size=[64,64]",
    "split.near_duplicates=ignore",  # the archive's parts are given; looking for copies would only cost time
    "schedule=linear-probe",
    "schedule.head_epochs=20",
    "schedule.views=1",
    "schedule.patience=null",
    "fit.batch_size=32",
)
THAWED = ("schedule=gradual", "schedule.unfreeze=2", "schedule.steps=1", "schedule.unfrozen_epochs=4")
DIFFERENCES = ("AUPRC", "balanced accuracy", "ECE")  # of which the difference to `none` is shown
SHOWN = ("AUPRC", "balanced accuracy", "at 0.5", "sensitivity", "specificity", "ECE")

Archive = Mapping[str, NDArray]


class Silence:
    """A watcher that prints nothing."""

    def note(self, label: str, text: str) -> None:
        pass

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        pass


class Evaluation:
    """The evaluation images and their output of the frozen prefix: the same for all runs."""

    def __init__(self, source: Archive, folder: Path, config: RunConfig) -> None:
        path = folder / "evaluation.npz"
        np.savez(path, test_images=source["val_images"], test_labels=source["val_labels"])
        manifest = load_manifest(path, None, config.task)
        prepared = prepare_samples(manifest.samples, config.preprocessing)
        self.images = prepared.read(prepared.rows_of(manifest.samples))
        self.truth = targets(manifest.task, manifest.samples)
        self.activations: torch.Tensor | None = None

    @torch.inference_mode()
    def probabilities(self, checkpoint: Checkpoint) -> NDArray[np.float64]:
        """Return (N, 2)."""
        classifier = checkpoint.classifier
        step = min(entry_step(classifier, stage) for stage in checkpoint.header.schedule)
        if self.activations is None:
            self.activations = torch.cat([classifier.run(x, 0, step) for x in self.images.split(32)])
        return classifier.probabilities(classifier(self.activations, step).double()).numpy()

    def measure(self, checkpoint: Checkpoint, ratio: int) -> dict[str, float]:
        """Return the metrics at a prevalence of one to `ratio`, and at the run's own threshold."""
        scores, truth, chosen = self.probabilities(checkpoint), self.truth, checkpoint.header.thresholds
        questions = metrics.Questions(scores, truth, checkpoint.task)
        rates = metrics.rates(questions, chosen)
        positive = truth == 1
        weights = np.where(positive, (~positive).sum() / positive.sum() / ratio, 1.0)
        found = (
            metrics.auprc(questions, weights)[0],
            metrics.balanced_accuracy(questions, chosen),
            metrics.balanced_accuracy(questions, [0.5]),
            metrics.share(*rates["sensitivity"])[0],
            metrics.share(*rates["specificity"])[0],
            _calibration_error(questions, weights),
        )
        return dict(zip(SHOWN, map(float, found), strict=True))


def _calibration_error(questions: metrics.Questions, weights: NDArray[np.float64]) -> float:
    """Return the error of samples that count as often as their weights say, to a hundredth."""
    rows = np.repeat(np.arange(len(weights)), np.round(100 * weights).astype(int))
    repeated = metrics.Questions(questions.probabilities[rows], questions.targets[rows], questions.task)
    gaps = bin_gaps(repeated, np.ones((1, len(rows))))
    return float(calibration_errors(repeated, gaps)[0, 0])


def thin(source: Archive, ratio: int, seed: int, folder: Path) -> Path:
    """Return an archive with one pneumonia to `ratio` normal images in training and in validation."""
    path = folder / f"{ratio}-{seed}.npz"
    if path.is_file():  # written anew it would have another hash, and be prepared anew
        return path
    generator = make_generator(seed, "thin", ratio)
    labels = source["train_labels"].ravel()
    normal, pneumonia = (generator.permutation(np.flatnonzero(labels == flag)) for flag in (0, 1))
    held = round(VALIDATION_SHARE * len(normal))
    rare = [round(count / ratio) for count in (held, len(normal) - held)]
    rows = {
        "val": np.concatenate([normal[:held], pneumonia[: rare[0]]]),
        "train": np.concatenate([normal[held:], pneumonia[rare[0] : sum(rare)]]),
    }
    arrays = {
        f"{part}_{what}": source[f"train_{what}"][at]
        for part, at in rows.items()
        for what in ("images", "labels")
    }
    np.savez(path, **arrays)
    return path


def run_row(
    source: Archive, evaluation: Evaluation, out: Path, choice: tuple[int, str, int], overrides: Sequence[str]
) -> dict[str, float]:
    """Return the metrics of one training (ratio, strategy, seed); run it unless `out` has them."""
    ratio, strategy, seed = choice
    kept = out / f"{ratio}-{strategy}-{seed}.json"
    if not kept.is_file():
        config = load_config("xray", None, (*overrides, f"fit.imbalance={strategy}", f"fit.seed={seed}"))
        with tempfile.TemporaryDirectory(dir=out) as run:
            train_run(thin(source, ratio, seed, out), None, Path(run), config, Silence())
            row = evaluation.measure(load_checkpoint(Path(run)), ratio)
        kept.write_text(json.dumps(row), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def margin(values: NDArray[np.float64]) -> float:
    """Return half the width of Student's 95% interval of the mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def print_row(ratio: int, strategy: str, rows: Sequence[dict], baseline: Sequence[dict]) -> None:
    """Print the mean of each metric with its margin, and the differences to the baseline."""
    cells = []
    for name in SHOWN:
        values, before = (np.array([row[name] for row in part]) for part in (rows, baseline))
        cells.append(f"{values.mean():.3f} ± {margin(values):.3f}")
        if name in DIFFERENCES and rows is not baseline:
            cells[-1] += f" ({(values - before).mean():+.3f} ± {margin(values - before):.3f})"
    print(f"| 1:{ratio} | {strategy} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run every strategy at every ratio with every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ratios", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(IMBALANCE), default=list(IMBALANCE))
    parser.add_argument("--unfreeze", action="store_true")
    chosen = parser.parse_args()
    path = chosen.data / "chest-xray-pneumonia" / "pneumoniamnist.npz"
    if not path.is_file():
        parser.error(f"{path} is not here: name the folder of real images with --data")
    if chosen.seeds < 2 or min(chosen.ratios) < 1:
        parser.error("--seeds must be 2 or more, for an interval, and --ratios 1 or more")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-imbalance-"))
    out, overrides = (out / "thawed", FROZEN + THAWED) if chosen.unfreeze else (out / "frozen", FROZEN)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MEDTL_HOME"] = str(out / "home")  # one for all runs: strategies share the cached features
    with np.load(path) as archive:
        source = {name: archive[name] for name in archive.files}
    evaluation = Evaluation(source, out, load_config("xray", None, overrides))
    header = " | ".join(("prevalence", "strategy", *SHOWN))
    print(f"| {header} |\n|{' --- |' * (2 + len(SHOWN))}")
    for ratio in chosen.ratios:
        rows = {}
        for strategy in dict.fromkeys(("none", *chosen.only)):
            choices = [(ratio, strategy, seed) for seed in range(chosen.seeds)]
            rows[strategy] = [run_row(source, evaluation, out, choice, overrides) for choice in choices]
            print_row(ratio, strategy, rows[strategy], rows["none"])


if __name__ == "__main__":
    main()

"""What several jobs share: where the phantoms are and a finished run."""

from pathlib import Path

from medtl.errors import CheckpointError, OutputError, ReadError
from medtl.imaging.manifest import Manifest
from medtl.imaging.prepared import PreparedDataset
from medtl.learning.checkpoint import Checkpoint, load_checkpoint

# Packages whose versions a run keeps.
VERSIONED = ("torch", "monai", "timm", "pydicom", "nibabel", "numpy")


def sample_data(modality: str) -> Path:
    """Return the phantoms of a modality: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    root = package if (package / "sample_data").is_dir() else package.parent
    return root / "sample_data" / modality


def all_refusals(manifest: Manifest, prepared: PreparedDataset) -> tuple[ReadError, ...]:
    """Return what the table's scan and what preparing refused."""
    return (*manifest.refusals, *(error for _, error in prepared.refusals))


def check_apart(out: Path, folder: Path) -> None:
    """Refuse to write into the folder that is read. Raises OutputError output-unwritable."""
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        reason = "lies in the folder that is read, where what is written would be taken for images"
        raise OutputError("output-unwritable", reason, where=out, fix="choose a folder elsewhere")


def load_finished(run: Path, *, any_modality: bool = False) -> Checkpoint:
    """Load a run's best checkpoint with its thresholds. Raises CheckpointError run-unfinished.

    any_modality: take images whose files name a modality or body part that the model is not for.
    """
    checkpoint = load_checkpoint(run)
    if checkpoint.header.thresholds is None:
        fix = "go on with medtl train --resume"
        raise CheckpointError("run-unfinished", "training was not finished", where=run, fix=fix)
    return checkpoint.for_any_modality() if any_modality else checkpoint

"""Write a run's best model in a format that runs without medtl, with all that must travel with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtl.core.files import write_json, write_text
from medtl.inference.contract import USE, contract
from medtl.inference.export import write_onnx, write_program
from medtl.inference.monai_bundle import write_bundle
from medtl.report.model_card import card_text, model_card
from medtl.training.checkpoint import load_finished

ExportFormat = Literal["onnx", "torch", "monai-bundle"]
MODEL_FILES = {"onnx": "model.onnx", "torch": "model.pt2", "monai-bundle": "models/model.pt2"}


@dataclass(frozen=True)
class Exported:
    """Where the model lies, and its size in bytes."""

    model: Path
    size: int


def export_run(run: Path, out: Path, to: ExportFormat) -> Exported:
    """Write the model, what it takes and gives (model.json), and its card below `out`.

    What is written gives what the checkpoint gives, or is not kept. Raises CheckpointError extra-missing,
    export-unsupported, export-differs, run-unfinished; OutputError.
    """
    checkpoint = load_finished(run)
    said = contract(checkpoint)
    card = card_text(model_card(run, checkpoint), USE, said["preprocessing"]["steps"])
    model = out / MODEL_FILES[to]
    if to == "monai-bundle":
        write_bundle(out, checkpoint, said, card)
    else:
        write_onnx(model, checkpoint, said) if to == "onnx" else write_program(model, checkpoint)
        write_text(out / "README.md", card)
        write_json(out / "model.json", said)
    return Exported(model, model.stat().st_size)

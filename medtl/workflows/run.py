"""Run: the folder that training wrote -> predictions, evaluations, maps, pages, exported models."""

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medtl.core.files import PathLike, write_json, write_text
from medtl.core.progress import SILENT, Watcher
from medtl.errors import ReadError
from medtl.inference.predictor import Prediction, score_series
from medtl.report.findings import Bounds, read_bounds
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.training.run_folder import RunFolder

if TYPE_CHECKING:
    from medtl.data.task import Task
    from medtl.report.site import WrittenReport
    from medtl.workflows.evaluate import EvaluateOutcome
    from medtl.workflows.explain import ExplainOutcome

ExportFormat = Literal["onnx", "torch", "monai-bundle"]
MODEL_FILES = {"onnx": "model.onnx", "torch": "model.pt2", "monai-bundle": "models/model.pt2"}


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A finished training run: a folder, and a path wherever medtl takes that of a run.

    refusals: the inputs that training could not read; empty for a run that was loaded. Properties raise
    CheckpointError run-missing, run-unfinished or checkpoint-damaged when they are first used.

    >>> import medtl
    >>> run = medtl.load_run("runs/xray")
    >>> images = medtl.sample_data("unlabelled") / "xray"
    >>> [row.status for row in run.predict(images)][:2]
    ['scored', 'scored']
    """

    folder: Path
    refusals: tuple[ReadError, ...] = ()

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The best checkpoint: network, task, preprocessing, thresholds, calibration."""
        return load_finished(self.folder)

    @property
    def task(self) -> "Task":
        """The classes, and what kind of question they answer."""
        return self.checkpoint.task

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The content of metrics.json: validation metrics, stages, seconds, versions."""
        folder = RunFolder(self.folder)
        return folder.read_json(folder.metrics)

    @property
    def validation(self) -> Mapping[str, Bounds]:
        """The metrics on validation data: name -> (value, low, high), None where undefined."""
        return read_bounds(self.metrics.get("split", {}).get("val", {}))

    def predict(
        self, images: PathLike, *, any_modality: bool = False, watcher: Watcher = SILENT
    ) -> list[Prediction]:
        """Score every series and image of a file or folder: a row each, refusals included; write nothing.

        any_modality: accept images whose files name a modality that the model is not for.
        """
        from medtl.imaging.reader import scan

        root = Path(images)
        checkpoint = self.checkpoint.for_any_modality() if any_modality else self.checkpoint
        found = scan(root, reading=checkpoint.preprocessing.reading, watcher=watcher)
        rows: list[Prediction] = []
        root = root if root.is_dir() else root.parent
        for scored in score_series(checkpoint, found, root, keep_images=False):
            rows.append(scored.prediction)
            watcher.progress("scoring", len(rows), len(found.series) + len(found.refusals))
        return rows

    def evaluate(self, data: PathLike, labels: PathLike | None = None, **options: Any) -> "EvaluateOutcome":
        """Evaluate on labelled studies; options: those of medtl.evaluate."""
        from medtl.workflows.evaluate import evaluate

        return evaluate(self, data, labels, **options)

    def explain(self, folder: PathLike, out: PathLike, **options: Any) -> "ExplainOutcome":
        """Write a heatmap of each study of a folder; options: those of medtl.explain_folder."""
        from medtl.workflows.explain import explain_folder

        return explain_folder(self, folder, out, **options)

    def report(self, source: PathLike, out: PathLike, **options: Any) -> "WrittenReport":
        """Write a page for each study of a folder; options: those of medtl.report_folder."""
        from medtl.workflows.report import report_folder

        return report_folder(self, source, out, **options)

    def export(self, out: PathLike, to: ExportFormat = "onnx") -> "Exported":
        """Write the model in a format that runs without medtl; see medtl.export."""
        return export(self, out, to)

    def _repr_html_(self) -> str:
        """Return a table of the validation metrics, for notebooks."""
        from medtl.report.formatting import interval_text, metric_name

        confidence = float(self.metrics.get("split", {}).get("val", {}).get("confidence", 0.95))
        rows = "".join(
            f"<tr><td>{html.escape(metric_name(name).name)}</td>"
            f"<td>{html.escape(interval_text(bounds, confidence))}</td></tr>"
            for name, bounds in self.validation.items()
        )
        classes = " against ".join(self.metrics.get("task", {}).get("classes", ()))
        title = f"{html.escape(classes)} <code>{html.escape(str(self.folder))}</code>"
        return f"<table><caption>{title}: validation data</caption>{rows}</table>"


def load_run(folder: PathLike) -> Run:
    """Return a finished run. Raises CheckpointError run-missing, run-unfinished.

    >>> import medtl
    >>> medtl.load_run("runs/xray").task.classes
    ('normal', 'opacity')
    """
    run = Run(Path(folder))
    _ = run.checkpoint  # a missing run is an error here and now
    return run


@dataclass(frozen=True)
class Exported:
    """Where the model is, and its size in bytes."""

    model: Path
    size: int


def export(run: PathLike, out: PathLike, to: ExportFormat = "onnx") -> Exported:
    """Write a run's model, a description of its inputs and outputs (model.json) and its card to `out`.

    The exported model is run and compared with the checkpoint before it is kept. Raises CheckpointError
    extra-missing, export-unsupported, export-differs, run-unfinished; OutputError.

    >>> import medtl
    >>> medtl.export("runs/xray", "exported", to="torch").model.name
    'model.pt2'
    """
    from medtl.inference.contract import USE, contract
    from medtl.inference.export import write_onnx, write_program
    from medtl.inference.monai_bundle import write_bundle
    from medtl.report.model_card import card_text, model_card

    run, out = Path(run), Path(out)
    checkpoint = load_finished(run)
    description = contract(checkpoint)
    card = card_text(model_card(run, checkpoint), USE, description["preprocessing"]["steps"])
    model = out / MODEL_FILES[to]
    if to == "monai-bundle":
        write_bundle(out, checkpoint, description, card)
    else:
        write_onnx(model, checkpoint, description) if to == "onnx" else write_program(model, checkpoint)
        write_text(out / "README.md", card)
        write_json(out / "model.json", description)
    return Exported(model, model.stat().st_size)

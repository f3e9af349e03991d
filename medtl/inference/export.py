"""Turn a checkpoint into a program that runs without medtl: prepared images -> logits and probabilities.

classifier + calibration -> Portable -> torch.export -> model.pt2
                                     -> ONNX         -> model.onnx
Each file is compared with the classifier before it gets its name.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from medtl.core.files import replacing
from medtl.data.task import TaskKind
from medtl.errors import CheckpointError
from medtl.evaluation.calibration import Calibration, Steps, to_probabilities
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import Checkpoint

INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
OUTPUTS = (LOGITS, PROBABILITIES)

# The largest difference of an exported program, relative for outputs beyond 1.
TOLERANCE = 1e-4

# Batch sizes that a program is compared with; none is the one that it was traced with.
TRACED_WITH, TRIED_WITH = 2, (1, 3)

# Images (N, C, *size) to outputs.
Run = Callable[[NDArray[np.float32]], Sequence[NDArray]]


class Portable(nn.Module):
    """Prepared images (N, C, *size) in [0, 1] -> logits and probabilities (N, K), both float32.

    alone: probabilities alone, for runtimes with one output.
    """

    def __init__(
        self, classifier: Classifier, calibration: Calibration | None, *, alone: bool = False
    ) -> None:
        super().__init__()
        self.classifier, self.alone = classifier, alone
        self.calibrated = Calibrated(classifier.task.kind, calibration)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.classifier(image)
        probabilities: Tensor = self.calibrated(logits)
        return probabilities if self.alone else (logits, probabilities)


class Calibrated(nn.Module):
    """Logits (N, K) -> probabilities (N, K) as in evaluation/calibration.py, in 64 bits internally."""

    temperatures: Tensor

    def __init__(self, kind: TaskKind, calibration: Calibration | None) -> None:
        super().__init__()
        calibration = calibration or Calibration(method="temperature")
        self.kind = kind
        self.register_buffer("temperatures", torch.tensor(calibration.temperatures, dtype=torch.float64))
        self.steps = nn.ModuleList(Interpolation(steps) for steps in calibration.steps)

    def forward(self, logits: Tensor) -> Tensor:
        scaled = logits.double() / self.temperatures
        raw = scaled.sigmoid() if self.kind == "multilabel" else scaled.softmax(dim=1)
        if not len(self.steps):
            return raw.float()
        columns = raw[:, -1:] if self.kind == "binary" else raw
        stepped = torch.cat([step(columns[:, k : k + 1]) for k, step in enumerate(self.steps)], dim=1)
        if self.kind == "binary":
            return torch.cat([1 - stepped, stepped], dim=1).float()
        if self.kind == "multilabel":
            return stepped.float()
        total = stepped.sum(dim=1, keepdim=True)
        even = torch.full_like(stepped, 1 / len(self.steps))
        return torch.where(total > 0, stepped / torch.where(total > 0, total, 1.0), even).float()


class Interpolation(nn.Module):
    """numpy.interp as a sum over segments, each clamped to its width: (N, 1) -> (N, 1)."""

    segments: Tensor  # (3, segments): where each starts, its width, and its slope

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        x, y = (torch.tensor(values, dtype=torch.float64) for values in (steps.x, steps.y))
        widths = x.diff()
        self.first = float(y[0])
        slopes = torch.where(widths > 0, y.diff() / widths.clamp(min=1e-300), 0.0)
        self.register_buffer("segments", torch.stack([x[:-1], widths, slopes]))

    def forward(self, values: Tensor) -> Tensor:
        starts, widths, slopes = self.segments.unbind()
        inside = torch.minimum((values - starts).clamp(min=0), widths)
        return self.first + (inside * slopes).sum(dim=1, keepdim=True)


def write_onnx(path: Path, checkpoint: Checkpoint, contract: Mapping[str, Any]) -> float:
    """Write an ONNX file with the contract as metadata; return its largest difference from the classifier.

    Raises CheckpointError extra-missing, export-unsupported, export-differs; OutputError.
    """
    onnxruntime = import_onnx("medtl export")
    portable = Portable(checkpoint.classifier, checkpoint.header.calibration)
    written = translate(portable, checkpoint, OUTPUTS)
    for key, value in contract.items():
        written.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    with replacing(path) as temporary:
        written.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        return _check(checkpoint, OUTPUTS, lambda images: session.run(OUTPUTS, {INPUT: images}))


def write_program(path: Path, checkpoint: Checkpoint, *, alone: bool = False) -> ExportedProgram:
    """Write a torch.export archive of a Portable, and return the program.

    Raises CheckpointError export-unsupported, export-differs; OutputError.
    """
    program = _trace(Portable(checkpoint.classifier, checkpoint.header.calibration, alone=alone), checkpoint)
    names = (PROBABILITIES,) if alone else OUTPUTS
    with replacing(path) as temporary:
        save_through_memory(lambda file: torch.export.save(program, file), temporary)
        with temporary.open("rb") as file:
            module = torch.export.load(file).module()

        def run(images: NDArray[np.float32]) -> list[NDArray]:
            outputs = module(torch.from_numpy(images))
            return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

        _check(checkpoint, names, run)
    return program


def save_through_memory(save: Callable[[IO[bytes]], None], path: Path) -> None:
    """Save to memory first, then to a file: on a full disk torch's own writer ends the process."""
    content = io.BytesIO()
    save(content)
    path.write_bytes(content.getbuffer())


def example_images(checkpoint: Checkpoint, count: int) -> NDArray[np.float32]:
    """Return smooth random images (count, C, *size) in [0, 1], the same ones each time."""
    from scipy.ndimage import gaussian_filter

    config = checkpoint.preprocessing
    noise = np.random.default_rng(count).random((count, config.channels, *config.size), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, 0, *[side / 16 for side in config.size]))
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low)).astype(np.float32)


def import_onnx(where: str) -> Any:
    """Return onnxruntime, once everything is installed that writes and runs ONNX.

    Raises CheckpointError extra-missing.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read by the import
    try:
        onnxruntime, *_ = map(import_module, ("onnxruntime", "onnx", "onnxscript"))
    except ModuleNotFoundError as missing:
        reason, fix = f"needs {missing.name}", "pip install 'medtl[export]'"
        raise CheckpointError("extra-missing", reason, where=where, fix=fix) from missing
    return onnxruntime


def translate(network: nn.Module, checkpoint: Checkpoint, outputs: Sequence[str]) -> ONNXProgram:
    """Return a network as an ONNX graph for any number of a checkpoint's images.

    Raises CheckpointError export-unsupported.
    """
    program = _trace(network, checkpoint)
    with _reporting_unsupported(checkpoint, "ONNX"):
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs
        )
    assert written is not None
    for value in (*written.model.graph.inputs, *written.model.graph.outputs):
        assert value.shape is not None
        value.shape[0] = "batch"  # in place of the tracer's name
    return written


def _trace(network: nn.Module, checkpoint: Checkpoint) -> ExportedProgram:
    """Trace a network with any number of images."""
    images = torch.from_numpy(example_images(checkpoint, TRACED_WITH))
    with _reporting_unsupported(checkpoint, "torch.export"):
        return torch.export.export(network.cpu().eval(), (images,), dynamic_shapes=({0: Dim("batch")},))


@contextmanager
def _reporting_unsupported(checkpoint: Checkpoint, format_name: str) -> Iterator[None]:
    """Turn any error of tracing and translating into the refusal of a backbone by name."""
    try:
        yield
    except Exception as error:  # the exporters' errors have no base class of their own
        reason = f"{checkpoint.header.backbone} cannot be written as {format_name} ({type(error).__name__})"
        fix = "use medtl itself, or another backbone"
        raise CheckpointError("export-unsupported", reason, where=checkpoint.folder, fix=fix) from error


@torch.no_grad()
def largest_difference(checkpoint: Checkpoint, run: Run, right: Run) -> float:
    """Return the largest difference of outputs, relative to the largest of them if that is beyond 1.

    NaN if one is.
    """
    differences = []
    for count in TRIED_WITH:
        images = example_images(checkpoint, count)
        for output, expected in zip(run(images), right(images), strict=True):
            scale = max(1.0, float(np.abs(expected).max()))
            differences.append(np.abs(output - expected).max() / scale)
    return float(np.max(differences))  # max() would lose a NaN


def _check(checkpoint: Checkpoint, names: Sequence[str], run: Run) -> float:
    """Return the largest difference from the classifier. Raises CheckpointError export-differs."""

    def right(images: NDArray[np.float32]) -> list[NDArray]:
        logits = checkpoint.classifier(torch.from_numpy(images)).numpy()
        calibration = checkpoint.header.calibration
        probabilities = to_probabilities(logits, checkpoint.task.kind, calibration)
        return [{LOGITS: logits, PROBABILITIES: probabilities}[name] for name in names]

    worst = largest_difference(checkpoint, run, right)
    if not worst <= TOLERANCE:
        reason = f"the exported program differs by {worst:.2g}"
        fix = "use medtl itself, or another format"
        raise CheckpointError("export-differs", reason, where=checkpoint.folder, fix=fix)
    return worst

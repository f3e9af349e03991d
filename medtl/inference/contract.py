"""Describe an exported model as plain data: its input, outputs, task, preprocessing, licences and use."""

from collections.abc import Iterator
from typing import Any

from medtl.core import __version__
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.inference.export import INPUT, LOGITS, PROBABILITIES
from medtl.training.checkpoint import Checkpoint

FORMAT_VERSION = 1
USE = "Research use only. Not for diagnosis."
INTENSITIES = {
    "percentile": "map the percentiles {0} and {1} to 0 and 1",
    "window": "apply the window (VOI) of the file; without one map the percentiles {0} and {1} to 0 and 1",
    "range": "map {2} and {3} to 0 and 1",
}


def contract(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return input, outputs, task, thresholds, calibration, preprocessing, licences and origin."""
    header, config = checkpoint.header, checkpoint.preprocessing
    output = {"dtype": "float32", "shape": ["batch", len(header.classes)]}
    image = ["batch", config.channels, *config.size]
    weights = header.weights
    origin = f"{weights['licence']}: {weights['source']}" if weights else "none: trained from random weights"
    return {
        "format": str(FORMAT_VERSION),
        "producer": f"medtl {__version__}",
        "use": USE,
        "input": {INPUT: {"dtype": "float32", "shape": image, "range": [0, 1], "is": "the prepared image"}},
        "outputs": {LOGITS: output, PROBABILITIES: {**output, "calibrated": calibration_words(checkpoint)}},
        "task": {"kind": header.task_kind, "classes": list(header.classes)},
        "thresholds": checkpoint.thresholds,
        "calibration": header.calibration.model_dump(mode="json") if header.calibration else None,
        "conformal": header.conformal.model_dump(mode="json") if header.conformal else None,
        "preprocessing": {**config.model_dump(mode="json"), "steps": list(preprocessing_steps(config))},
        "licences": {"pretrained weights": origin, "medtl": "Apache-2.0", "training data": "ask its owner"},
        "backbone": header.backbone,
        "model_sha256": checkpoint.sha256,
    }


# What is asked of the readers, in words.
READING_WORDS = {
    "resample_uneven": "tilted or unevenly spaced slices are resampled linearly to an even stack",
    "fill_nan": "NaN gets the lowest of the other values",
    "volumes_as_channels": "the volumes of a file are channels of one image, each with its own percentiles",
    "invert_by_lut_shape": "PresentationLUTShape decides whether low values are white, where it is given",
}


def preprocessing_steps(config: PreprocessingConfig) -> Iterator[str]:
    """Yield the steps of imaging/preprocessing.py in words."""
    yield from (words for name, words in READING_WORDS.items() if getattr(config, name))
    yield "values after the Modality LUT or rescale, larger is brighter: MONOCHROME1 is inverted"
    yield "padding values get the lowest of the others; colour becomes grey by ITU-R BT.601 for one channel"
    if len(config.size) == 3:
        yield f"axes in the order and direction {config.orientation}: slices, rows, columns"
    if config.spacing_mm is not None:
        yield f"resampled linearly to {' x '.join(f'{step:g}' for step in config.spacing_mm)} mm"
    else:
        yield "resized by one factor to fit in rows and columns, by area where it shrinks, otherwise linearly"
    low, high = config.range or ("", "")
    yield INTENSITIES[config.intensity].format(*config.percentiles, low, high) + ", and clip"
    yield f"padded with 0 or cropped around the centre to {' x '.join(map(str, config.size))}"


def calibration_words(checkpoint: Checkpoint) -> str:
    """Say whether and how probabilities are calibrated."""
    calibration = checkpoint.header.calibration
    return f"calibrated by {calibration.method}" if calibration else "not calibrated"

"""medtl: medical transfer learning that people can trust.

    import medtl

    run = medtl.train("xray", data="FOLDER", labels="labels.csv", out="runs/xray")
    rows = run.predict("NEW_STUDIES")

The names of __all__ are the public ones; each is imported when it is first used. The packages, in the order
in which data flow through them; imports run the other way:

    imaging      FILES -> IMAGES
    data         IMAGES + TABLES -> SAMPLES
    models       backbones as chains of layer groups, and their weights
    training     SAMPLES -> CHECKPOINT
    inference    CHECKPOINT + STUDIES -> PREDICTIONS
    evaluation   PREDICTIONS + LABELS -> NUMBERS
    explain      PREDICTIONS -> HEATMAPS, and whether to believe them
    report       NUMBERS AND PREDICTIONS -> PAGES
    pacs         PREDICTIONS -> OBJECTS FOR THE PACS; studies from there
    workflows    the job behind each command, as a function
    cli          FRONT DOOR: one file a command
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medtl.core import __version__ as __version__

if TYPE_CHECKING:
    from medtl.config import RunConfig as RunConfig
    from medtl.config import load_config as load_config
    from medtl.config import sample_data as sample_data
    from medtl.core.progress import StoppedError as StoppedError
    from medtl.core.progress import Watcher as Watcher
    from medtl.data.labels import load_table as load_table
    from medtl.data.task import Sample as Sample
    from medtl.data.task import Task as Task
    from medtl.errors import CheckpointError as CheckpointError
    from medtl.errors import ConfigError as ConfigError
    from medtl.errors import LabelError as LabelError
    from medtl.errors import MedtlError as MedtlError
    from medtl.errors import OutputError as OutputError
    from medtl.errors import PacsError as PacsError
    from medtl.errors import ReadError as ReadError
    from medtl.errors import SplitError as SplitError
    from medtl.errors import TrainingError as TrainingError
    from medtl.errors import WeightsError as WeightsError
    from medtl.evaluation.evaluate import Evaluation as Evaluation
    from medtl.explain import METHODS as METHODS
    from medtl.explain.explanation import Explanation as Explanation
    from medtl.imaging.image import Image as Image
    from medtl.imaging.reader import read_images as read_images
    from medtl.imaging.series import Series as Series
    from medtl.inference.predictor import Prediction as Prediction
    from medtl.models.backbones import BACKBONES as BACKBONES
    from medtl.training.imbalance import IMBALANCE as IMBALANCE
    from medtl.training.schedule import ScheduleConfig as ScheduleConfig
    from medtl.training.schedule import Stage as Stage
    from medtl.workflows.compare import compare as compare
    from medtl.workflows.demo import run_demo as run_demo
    from medtl.workflows.evaluate import evaluate as evaluate
    from medtl.workflows.explain import explain_folder as explain_folder
    from medtl.workflows.inspect import inspect_folder as inspect_folder
    from medtl.workflows.prepare import prepare as prepare
    from medtl.workflows.report import report_folder as report_folder
    from medtl.workflows.report import report_training as report_training
    from medtl.workflows.run import Run as Run
    from medtl.workflows.run import export as export
    from medtl.workflows.run import load_run as load_run
    from medtl.workflows.score import score_folder as score_folder
    from medtl.workflows.train import train as train
    from medtl.workflows.tune import tune as tune

# Where each public name is defined.
_HOMES = {
    name: f"medtl.{module}"
    for module, names in {
        "config": "RunConfig load_config sample_data",
        "core.progress": "StoppedError Watcher",
        "data.labels": "load_table",
        "data.task": "Sample Task",
        "errors": "CheckpointError ConfigError LabelError MedtlError OutputError PacsError ReadError "
        "SplitError TrainingError WeightsError",
        "evaluation.evaluate": "Evaluation",
        "explain": "METHODS",
        "explain.explanation": "Explanation",
        "imaging.image": "Image",
        "imaging.reader": "read_images",
        "imaging.series": "Series",
        "inference.predictor": "Prediction",
        "models.backbones": "BACKBONES",
        "training.imbalance": "IMBALANCE",
        "training.schedule": "ScheduleConfig Stage",
        "workflows.compare": "compare",
        "workflows.demo": "run_demo",
        "workflows.evaluate": "evaluate",
        "workflows.explain": "explain_folder",
        "workflows.inspect": "inspect_folder",
        "workflows.prepare": "prepare",
        "workflows.report": "report_folder report_training",
        "workflows.run": "Run export load_run",
        "workflows.score": "score_folder",
        "workflows.train": "train",
        "workflows.tune": "tune",
    }.items()
    for name in names.split()
}

__all__ = sorted([*_HOMES, "__version__"])

# Dependencies read these when they are imported. ONNX Runtime otherwise creates a device id and an event
# queue for its maker in the user's cache. Values that the user has set stay.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medtl' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

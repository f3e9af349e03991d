"""The jobs behind the commands: one file each; each composes the layers below and returns what is printed."""

from medtl.runs.common import sample_data
from medtl.runs.evaluate import EvaluateOutcome, evaluate_run
from medtl.runs.localise import localise_run
from medtl.runs.report import report_run
from medtl.runs.score import ScoreOutcome, score_run
from medtl.runs.train import TrainOutcome, train_run

__all__ = [
    "EvaluateOutcome",
    "ScoreOutcome",
    "TrainOutcome",
    "evaluate_run",
    "localise_run",
    "report_run",
    "sample_data",
    "score_run",
    "train_run",
]

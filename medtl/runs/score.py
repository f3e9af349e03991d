"""Score a folder of studies into a table."""

from dataclasses import dataclass
from pathlib import Path

from medtl.imaging.series import scan
from medtl.imaging.storage import write_json
from medtl.learning.fit import Watcher
from medtl.prediction.scoring import Prediction, score_series, write_scores
from medtl.runs.common import load_finished


@dataclass(frozen=True)
class ScoreOutcome:
    """What a folder's scoring came to."""

    table: Path
    predictions: tuple[Prediction, ...]
    skipped: int


def score_run(
    run: Path, folder: Path, out: Path, watcher: Watcher, *, any_modality: bool = False
) -> ScoreOutcome:
    """Score every series and image of a folder into OUT/scores.csv, refusals included, one row each."""
    checkpoint = load_finished(run, any_modality=any_modality)
    found = scan(folder)
    predictions = []
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, keep_images=False), start=1):
        predictions.append(scored.prediction)
        watcher.progress("scoring", done, total)
    table = out / "scores.csv"
    write_scores(table, checkpoint.task.classes, predictions)
    facts = {
        "folder": str(folder.resolve()),
        "model_sha256": checkpoint.sha256,
        "skipped_files": found.skipped,
    }
    write_json(out / "scores.json", facts)
    return ScoreOutcome(table, tuple(predictions), found.skipped)

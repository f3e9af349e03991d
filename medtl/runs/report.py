"""Write pages with saliency maps for the studies of a folder."""

from collections.abc import Iterator
from pathlib import Path

from medtl.errors import CODES, CheckpointError
from medtl.imaging.display import make_display
from medtl.imaging.image import Image
from medtl.imaging.series import Scan, scan
from medtl.imaging.storage import read_json
from medtl.imaging.terms import shown_body_part, shown_modality, shown_view
from medtl.learning.checkpoint import (
    Checkpoint,
)
from medtl.learning.fit import Watcher
from medtl.prediction.explanation import explain
from medtl.prediction.scoring import Scored, score_series
from medtl.reporting.findings import Refusal, StudyFinding
from medtl.reporting.model_card import model_card
from medtl.reporting.report import WrittenReport, write_report
from medtl.runs.common import load_finished

# How pages name the saliency methods.
METHOD_NAMES = {
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "eigen-cam": "Eigen-CAM",
    "integrated-gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "attention-rollout": "Attention rollout",
}


def report_run(
    run: Path,
    source: Path,
    out: Path,
    watcher: Watcher,
    *,
    method: str = "grad-cam",
    any_modality: bool = False,
) -> WrittenReport:
    """Write a page with a saliency map for each study of a folder (or of a scored OUT), and an index."""
    checkpoint = load_finished(run, any_modality=any_modality)
    folder = _scored_folder(source, checkpoint)
    found = scan(folder)
    refusals: list[Refusal] = []
    findings = _findings(checkpoint, found, folder, refusals, method, watcher)
    return write_report(out, findings, refusals, model_card(run, checkpoint))


def _scored_folder(source: Path, checkpoint: Checkpoint) -> Path:
    """Return the folder whose scores lie in `source`, or `source` itself where it is a folder of studies."""
    record = source / "scores.json"
    if not record.is_file():
        return source
    try:
        facts = read_json(record)
        folder, model = Path(facts["folder"]), facts["model_sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            "scores-damaged", "is no record of medtl score", where=record, fix="score again"
        ) from error
    if model != checkpoint.sha256:
        reason = "was scored by another model than this run's"
        raise CheckpointError("run-changed", reason, where=source, fix="score again, or name that run")
    return folder


def _findings(
    checkpoint: Checkpoint, found: Scan, folder: Path, refusals: list[Refusal], method: str, watcher: Watcher
) -> Iterator[StudyFinding]:
    """Yield a finding for each scored study; what is refused on the way is added to `refusals`.

    A page tells what the code means; the reason itself may name a file, and stays in scores.csv.
    """
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, batch_size=1), start=1):
        row = scored.prediction
        if scored.image is None:
            refusals.append(Refusal(row.sample_id, row.code, CODES[row.code], row.fix))
        else:
            yield _finding(checkpoint, scored, method)
        watcher.progress("explaining", done, total)


def _finding(checkpoint: Checkpoint, scored: Scored, method: str) -> StudyFinding:
    assert scored.image is not None and scored.prepared is not None
    row, image, task = scored.prediction, scored.image, checkpoint.task
    explanation = explain(checkpoint, image, scored.prepared, row.probabilities, method)
    display = make_display(image, explanation.heatmap)
    return StudyFinding(
        sample_id=row.sample_id,
        image=display.grey,
        heatmap=display.heatmap,
        spacing_mm=display.spacing_mm,
        target_class=explanation.target_class,
        method=METHOD_NAMES[method],
        probabilities=dict(zip(task.classes, row.probabilities, strict=True)),
        predicted=tuple(row.predicted.split("|")) if task.kind == "multilabel" else row.predicted,
        facts=_facts(image),
        notes=(*image.facts.notes, *([row.reason] if row.reason else [])),
    )


def _facts(image: Image) -> dict[str, str]:
    """Return what a page may show of an image: nothing that identifies a patient."""
    facts, matrix = image.facts, " x ".join(map(str, image.pixels.shape[1:]))
    spacing = (
        "" if image.spacing_mm is None else " x ".join(f"{step:.4g}" for step in image.spacing_mm) + " mm"
    )
    shown = {
        "format": facts.format,
        "modality": shown_modality(facts.modality),
        "body part": shown_body_part(facts.body_part),
        "view": shown_view(facts.view),
        "matrix": matrix,
        "spacing": spacing,
        "photometric": facts.photometric,
        "decoder": facts.decoder,
        "SHA-256": facts.sha256[:16],
    }
    return {name: text for name, text in shown.items() if text}

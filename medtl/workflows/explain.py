"""Explain the studies of a folder, and check the methods that explain them.

folder -> scored studies -> heatmaps on their grids -> OUT/maps, explain.csv
                         -> cases, and masks        -> audits of each method, audit.csv, audit.json
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from medtl.core.files import PathLike, check_apart, replacing, write_csv, write_json
from medtl.core.progress import SILENT, Watcher
from medtl.errors import ReadError
from medtl.explain import check_method, default_method, methods_for
from medtl.explain.audit import AuditSettings, Case, MethodAudit, audit, find_case, to_json
from medtl.explain.explanation import Explanation, explain, target_of
from medtl.imaging.image import Image
from medtl.imaging.reader import scan
from medtl.imaging.volumes.nifti import write_volume
from medtl.inference.predictor import Prediction, Scored, score_series
from medtl.report.pictures import overlay_of
from medtl.training.checkpoint import Checkpoint, load_finished

ROW_COLUMNS = ("sample_id", "source", "status", "code", "reason")
COLUMNS = (*ROW_COLUMNS, "class", "probability", "method", "map", "picture")
AUDIT_NUMBERS = ("value", "low", "high", "bound", "images")


@dataclass(frozen=True)
class ExplainedRow:
    """One row of explain.csv: the map of one method for one study, or why there is none.

    map and picture are paths within OUT, empty for a refusal.
    """

    prediction: Prediction
    target_class: str = ""
    probability: float | None = None
    method: str = ""
    map: str = ""
    picture: str = ""


@dataclass(frozen=True)
class ExplainOutcome:
    """The table and its rows. audits is empty where none was requested."""

    table: Path
    rows: tuple[ExplainedRow, ...]
    audits: tuple[MethodAudit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[Prediction, ...]:
        """The studies that could not be explained."""
        return tuple(row.prediction for row in self.rows if row.prediction.status == "refused")


def explain_folder(
    run: PathLike,
    folder: PathLike,
    out: PathLike,
    *,
    methods: Sequence[str] = (),
    audited: bool = False,
    masks: PathLike | None = None,
    audit_images: int = 20,
    any_modality: bool = False,
    watcher: Watcher = SILENT,
) -> ExplainOutcome:
    """Write a heatmap of each study of a folder to OUT/maps; with `audited`, check the methods as well.

    methods: names of METHODS; by default the one that suits the network for the maps, and all that suit it
    for the audit, which uses up to `audit_images` images. masks: a folder of masks named as the images are.
    Raises ConfigError saliency-method; ReadError audit-empty, mask-grid; OutputError output-unwritable.

    >>> import medtl
    >>> images = medtl.sample_data("unlabelled") / "xray"
    >>> medtl.explain_folder("runs/xray", images, "explained").rows[0].method
    'grad-cam'
    """
    folder, out, masks = Path(folder), Path(out), Path(masks) if masks else None
    check_apart(out, folder)
    checkpoint = load_finished(Path(run), any_modality=any_modality)
    shown = methods or (default_method(checkpoint.classifier),)
    for method in shown:
        check_method(method, checkpoint.classifier)
    rows: list[ExplainedRow] = []
    cases: list[Case] = []
    found = scan(folder, reading=checkpoint.preprocessing.reading, watcher=watcher)
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, batch_size=1), start=1):
        rows += _explain_study(checkpoint, scored, shown, out)
        if audited and len(cases) < audit_images:
            cases += find_case(checkpoint, scored, masks)
        watcher.progress("explaining", done, total)
    table, lines = out / "explain.csv", []
    for row in rows:
        facts = [getattr(row.prediction, name) for name in ROW_COLUMNS]
        probability = "" if row.probability is None else f"{row.probability:.6f}"
        lines.append([*facts, row.target_class, probability, row.method, row.map, row.picture])
    write_csv(table, [COLUMNS, *lines])
    if not audited:
        return ExplainOutcome(table, tuple(rows))
    if not cases:
        reason = "the model predicted the explained class for no image, so there is nothing to check"
        raise ReadError("audit-empty", reason, where=folder, fix="name a folder with images of that class")
    notes = _describe_cases(cases, masked=masks is not None)
    audits = audit(
        checkpoint.classifier,
        cases,
        methods or methods_for(checkpoint.classifier),
        AuditSettings(),
        lambda done, total: watcher.progress("auditing", done, total),
    )
    _write_audit(out, checkpoint, audits, notes)
    return ExplainOutcome(table, tuple(rows), tuple(audits), notes)


def _describe_cases(cases: Sequence[Case], *, masked: bool) -> tuple[str, str]:
    patients = len({case.patient for case in cases})
    checked = f"checked on {len(cases)} images of {patients} patients for which the model predicted the class"
    if masked:
        return checked, f"{sum(case.mask is not None for case in cases)} of the images have a mask"
    return checked, "no masks were given (--masks): whether maps lie on the finding was not checked"


def _explain_study(
    checkpoint: Checkpoint, scored: Scored, methods: Sequence[str], out: Path
) -> list[ExplainedRow]:
    row = scored.prediction
    if scored.image is None or scored.prepared is None:
        return [ExplainedRow(row)]
    rows = []
    for method in methods:
        explanation = explain(checkpoint, scored.image, scored.prepared, row.probabilities, method)
        probability = row.probabilities[target_of(checkpoint.task, row.probabilities)]
        written = _write_map(out, f"{row.sample_id}-{method}", scored.image, explanation)
        rows.append(ExplainedRow(row, explanation.target_class, probability, method, *written))
    return rows


def _write_map(out: Path, name: str, image: Image, explanation: Explanation) -> tuple[str, str]:
    """Write the heatmap on the image's grid, and a picture; return their paths within OUT."""
    heatmap = explanation.heatmap
    if image.affine is not None and heatmap.ndim == 3:
        path = f"maps/{name}.nii.gz"
        write_volume(out / path, heatmap, image.affine)
    else:
        path = f"maps/{name}.npz"
        with replacing(out / path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, heatmap=heatmap)
    picture = f"maps/{name}.png"
    with replacing(out / picture) as temporary:
        Picture.fromarray(overlay_of(image, heatmap).pixels).save(temporary, format="PNG")
    return path, picture


def _write_audit(
    out: Path, checkpoint: Checkpoint, audits: Sequence[MethodAudit], notes: Sequence[str]
) -> None:
    methods = to_json(audits)
    content = {"model_sha256": checkpoint.sha256, "notes": list(notes), "methods": methods}
    write_json(out / "audit.json", content)
    rows = []
    for row in methods:
        for name, check in row["checks"].items():
            numbers = ("" if check[key] is None else f"{check[key]:.6g}" for key in AUDIT_NUMBERS)
            rows.append([row["method"], name, *numbers, check["verdict"]])
    write_csv(out / "audit.csv", [("method", "check", *AUDIT_NUMBERS, "verdict"), *rows])

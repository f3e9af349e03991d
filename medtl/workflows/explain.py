"""Explain the studies of a folder, and check the methods that explain them.

folder -> scored studies -> heatmaps on their grids -> OUT/maps, explain.csv
                         -> cases, and masks        -> audits of each method, audit.csv, audit.json
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from medtl.core.files import check_apart, replacing, write_csv, write_json
from medtl.core.progress import Watcher
from medtl.errors import ReadError
from medtl.explain import check_method, default_method, methods_for
from medtl.explain.audit import AuditSettings, Case, MethodAudit, audit, find_case, to_json
from medtl.explain.explanation import Explanation, explain, target_of
from medtl.imaging.image import Image
from medtl.imaging.nifti import write_volume
from medtl.imaging.reader import scan
from medtl.inference.predictor import Prediction, Scored, score_series
from medtl.report.pictures import overlay_of
from medtl.training.checkpoint import Checkpoint, load_finished

COLUMNS = (
    "sample_id",
    "source",
    "status",
    "code",
    "reason",
    "class",
    "probability",
    "method",
    "map",
    "picture",
)
AUDIT_COLUMNS = ("method", "check", "value", "low", "high", "bound", "images", "verdict")


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
    """What explaining a folder came to. audits is empty where none was asked for."""

    table: Path
    rows: tuple[ExplainedRow, ...]
    audits: tuple[MethodAudit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[Prediction, ...]:
        """The studies that could not be explained."""
        return tuple(row.prediction for row in self.rows if row.prediction.status == "refused")


@dataclass(frozen=True)
class ExplainOptions:
    """What to explain with, and what to check.

    methods: names of METHODS; by default the network's own for the maps, and every one that suits it for the
    audit. masks: a folder of masks with the images' names. audit_images: an audit takes so many.
    """

    methods: tuple[str, ...] = ()
    audit: bool = False
    masks: Path | None = None
    audit_images: int = 20
    any_modality: bool = False
    settings: AuditSettings = field(default_factory=AuditSettings)


def explain_run(
    run: Path, folder: Path, out: Path, watcher: Watcher, options: ExplainOptions = ExplainOptions()
) -> ExplainOutcome:
    """Write a heatmap of each study of a folder into OUT/maps, and with options.audit what they are worth.

    Raises ConfigError saliency-method; ReadError audit-empty, mask-grid; OutputError output-unwritable.
    """
    check_apart(out, folder)
    checkpoint = load_finished(run, any_modality=options.any_modality)
    methods = options.methods or (default_method(checkpoint.classifier),)
    for method in methods:
        check_method(method, checkpoint.classifier)
    rows: list[ExplainedRow] = []
    cases: list[Case] = []
    for scored in _scored(checkpoint, folder, watcher):
        rows += _explain_study(checkpoint, scored, methods, out)
        if options.audit and len(cases) < options.audit_images:
            cases += find_case(checkpoint, scored, options.masks)
    table = out / "explain.csv"
    write_csv(table, [COLUMNS, *map(_cells, rows)])
    if not options.audit:
        return ExplainOutcome(table, tuple(rows))
    audited = options.methods or methods_for(checkpoint.classifier)
    audits, notes = _audit(checkpoint, cases, audited, options, watcher, folder)
    _write_audit(out, checkpoint, audits, notes)
    return ExplainOutcome(table, tuple(rows), audits, notes)


def _scored(checkpoint: Checkpoint, folder: Path, watcher: Watcher) -> Iterator[Scored]:
    found = scan(folder)
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, batch_size=1), start=1):
        yield scored
        watcher.progress("explaining", done, total)


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


def _audit(
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    methods: Sequence[str],
    options: ExplainOptions,
    watcher: Watcher,
    folder: Path,
) -> tuple[tuple[MethodAudit, ...], tuple[str, ...]]:
    if not cases:
        reason = "in no image did the model find the class that is explained, so there is nothing to check"
        raise ReadError("audit-empty", reason, where=folder, fix="name a folder with images of that class")
    found = audit(
        checkpoint.classifier,
        cases,
        methods,
        options.settings,
        lambda done, total: watcher.progress("auditing", done, total),
    )
    return tuple(found), tuple(_audit_notes(cases, options))


def _audit_notes(cases: Sequence[Case], options: ExplainOptions) -> Iterator[str]:
    patients = len({case.patient for case in cases})
    yield f"checked on {len(cases)} images of {patients} patients in which the model found what it explains"
    if options.masks is None:
        yield "no masks were named (--masks): whether maps lie on the finding was not checked"
    else:
        yield f"{sum(case.mask is not None for case in cases)} of the images have a mask"


def _write_audit(
    out: Path, checkpoint: Checkpoint, audits: Sequence[MethodAudit], notes: Sequence[str]
) -> None:
    rows = to_json(audits)
    write_json(out / "audit.json", {"model_sha256": checkpoint.sha256, "notes": list(notes), "methods": rows})
    lines = [
        [row["method"], name, *(_number(check[key]) for key in AUDIT_COLUMNS[2:-1]), check["verdict"]]
        for row in rows
        for name, check in row["checks"].items()
    ]
    write_csv(out / "audit.csv", [AUDIT_COLUMNS, *lines])


def _cells(row: ExplainedRow) -> list[str]:
    said = row.prediction
    probability = "" if row.probability is None else f"{row.probability:.6f}"
    facts = [said.sample_id, said.source, said.status, said.code, said.reason]
    return [*facts, row.target_class, probability, row.method, row.map, row.picture]


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}"

"""Write the sample data: cohorts become images, masks and label tables; run twice, the bytes are the same.

    python -m sample_data.generate [--out DIR]

README.md in this folder describes what is written.
"""

import argparse
import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .brain import draw_brain
from .cohort import COHORTS, Study, make_cohort
from .dicom import MR_UNITS, write_radiograph, write_series
from .files import reorient, write_mask_png, write_nifti
from .radiograph import draw_radiograph

HOME = Path(__file__).resolve().parent
COLUMNS = ("path", "label", "patient_id", "sex", "age", "scanner")
WRITTEN = ("xray", "mri", "unlabelled")
TRUNCATED = "truncated.dcm"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(
        prog="python -m sample_data.generate", description="Write the sample data."
    )
    parser.add_argument("--out", type=Path, default=HOME, help="default: beside this module")
    out = parser.parse_args(arguments).out
    # Only what is known to be sample data is replaced: another folder named mri may be someone's archive.
    taken = [] if out.resolve() == HOME else [out / name for name in WRITTEN if (out / name).exists()]
    if taken:
        parser.error(f"{taken[0]} exists: give a folder without it")
    try:
        write_sample_data(out)
    except OSError as error:
        parser.exit(1, f"cannot write {error.filename}: {error.strerror}\n")


def write_sample_data(out: Path) -> None:
    """Write all cohorts below a folder; what an earlier run wrote there is replaced."""
    for name in WRITTEN:
        shutil.rmtree(out / name, ignore_errors=True)
    answers: list[dict[str, str]] = []
    for cohort in COHORTS:
        studies = make_cohort(cohort)
        if cohort.name == "labelled":
            folder = out / cohort.kind
            rows = [_write_study(study, folder / "images", folder / "masks", folder) for study in studies]
            _write_table(rows, folder / "labels.csv")
        else:
            folder = out / cohort.name
            answers += [_write_study(study, folder / cohort.kind, None, folder) for study in studies]
    _truncate_last(out / "unlabelled", answers)
    _write_table(answers, out / "unlabelled" / "answers.csv")


def _write_study(study: Study, images: Path, masks: Path | None, root: Path) -> dict[str, str]:
    """Write one study, and its mask if it has one and masks are wanted; return its row of the table."""
    write = {"xray": _write_radiograph, "mri": _write_brain}[study.kind]
    path = write(study, images, masks)
    row = (path.relative_to(root).as_posix(), study.label, study.patient_id, study.sex, str(study.age))
    return dict(zip(COLUMNS, (*row, study.traits["scanner"])))


def _write_radiograph(study: Study, images: Path, masks: Path | None) -> Path:
    image, mask = draw_radiograph(study)
    path = images / f"{study.name}.dcm"
    write_radiograph(study, image, path)
    if mask is not None and masks is not None:
        write_mask_png(mask, masks / f"{study.name}.png")
    return path


def _write_brain(study: Study, images: Path, masks: Path | None) -> Path:
    volume, mask, affine = draw_brain(study)
    grid = affine
    if study.traits["container"] == "dicom":
        path = images / study.name
        write_series(study, volume, affine, path)
    else:
        path = images / f"{study.name}.nii.gz"
        turned, grid = reorient(volume, affine, study.traits["orientation"])
        write_nifti(np.rint(turned * MR_UNITS).astype(np.int16), grid, path)
        mask = None if mask is None else reorient(mask, affine, study.traits["orientation"])[0]
    if mask is not None and masks is not None:
        write_nifti(mask.astype(np.uint8), grid, masks / f"{study.name}.nii.gz")
    return path


def _truncate_last(folder: Path, answers: list[dict[str, str]]) -> None:
    """Cut the last unlabelled radiograph short and rename it: a file that must be refused has no answer."""
    row = next(row for row in reversed(answers) if row["path"].startswith("xray/"))
    answers.remove(row)
    whole = folder / row["path"]
    content = whole.read_bytes()
    whole.with_name(TRUNCATED).write_bytes(content[: len(content) // 3])
    whole.unlink()


def _write_table(rows: Sequence[dict[str, str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

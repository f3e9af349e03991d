"""Results about small DICOM series of every kind, and the tools that judge the objects made of them."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, MRImageStorage

from medtl.data.task import Task
from medtl.imaging.dicom.patient import read_sources
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Reading
from medtl.pacs.objects.result import ModelIdentity, StudyResult
from tests.imaging.conftest import (
    build_dataset,
    build_enhanced,
    build_grid,
    build_mosaic,
    fixed_uid,
    pattern,
    save,
)

# Not axial, not square, and not the identity in any axis.
OBLIQUE = (0.0, 0.8, -0.6, 1.0, 0.0, 0.0)
FRAME = fixed_uid("frame of reference")
IDENTITY = {
    "PatientID": "P 7",
    "PatientName": "Çelik^Ömer",
    "SpecificCharacterSet": "ISO_IR 148",
    "PatientBirthDate": "19771231",
    "PatientSex": "F",
    "IssuerOfPatientID": "Ward",
    "StudyDate": "20010911",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A-12",
    "ReferringPhysicianName": "Ray^X",
    "StudyDescription": "Çok",
    "SeriesNumber": 4,
    "StudyInstanceUID": fixed_uid("result study"),
    "SeriesInstanceUID": fixed_uid("result series"),
}
KINDS = ("radiograph", "series", "enhanced", "second echo", "mosaic", "grid", "tilted", "uneven")
# Places of the slices of two series that are resampled (LPS mm).
UNEVEN = {
    "tilted": [[-10.0, -20 + 0.8 * k, 30 + 2.5 * k] for k in range(5)],
    "uneven": [[-10.0, -20.0, z] for z in (0.0, 2.5, 5.0, 10.0, 15.0)],
}


def write_source(folder: Path, kind: str, **elements: object) -> Path:
    """Write one series of a kind of KINDS; return its folder."""
    given = {**IDENTITY, **elements}
    placed = {"FrameOfReferenceUID": FRAME, "PositionReferenceIndicator": ""}
    if kind == "radiograph":
        details = {"BitsStored": 12, "PatientOrientation": ["L", "F"], "BodyPartExamined": "CHEST"}
        pixels = pattern(30, 20)
        save(
            build_dataset(pixels, ComputedRadiographyImageStorage, **{**details, **given}), folder / "cr.dcm"
        )
    elif kind == "series":
        for k in range(5):
            save(_slice(k, {**placed, **given}), folder / f"{k}.dcm")
    elif kind in UNEVEN:
        for k, place in enumerate(UNEVEN[kind]):
            where = {"ImagePositionPatient": place, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            save(_slice(k, {**placed, **where, **given}), folder / f"{k}.dcm")
    elif kind == "grid":
        save(build_grid(pattern(5, 16, 18), **{**placed, **given}), folder / "grid.dcm")
    elif kind == "mosaic":
        save(build_mosaic(pattern(5, 6, 7), **{**placed, **given}), folder / "mosaic.dcm")
    else:
        save(_enhanced(2 if kind == "second echo" else 1, {**placed, **given}), folder / "enhanced.dcm")
    return folder


def _slice(k: int, elements: dict) -> Dataset:
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    details = {
        "SOPInstanceUID": fixed_uid("result", k),
        "BitsStored": 12,
        "ImageOrientationPatient": list(OBLIQUE),
        "ImagePositionPatient": [round(float(v), 6) for v in np.array((-10, -20, 30)) + 2.5 * k * normal],
        "SliceThickness": 2.5,
        "InstanceNumber": k + 1,
    }
    return build_dataset(pattern(12, 9, seed=k), MRImageStorage, **{**details, **elements})


def _enhanced(echoes: int, elements: dict) -> Dataset:
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    positions = [np.array((-10, -20, 30)) + 2.5 * k * normal for k in range(4) for _ in range(echoes)]
    times = {"frame_EffectiveEchoTime": [10.0, 20.0] * 4} if echoes == 2 else {}
    return build_enhanced(pattern(4 * echoes, 12, 9), positions, OBLIQUE, **times, **elements)


def result_of(folder: Path, classes: Sequence[str] = ("normal", "lesion")) -> StudyResult:
    """Return a result about the last series of a folder, in which the last class was predicted."""
    series = scan(folder, reading=Reading(resample_uneven=True)).series[-1]
    image = read_series(series)
    heatmap = np.zeros(image.pixels.shape[1:], np.float32)
    heatmap[tuple(slice(side // 3, side // 2 + 1) for side in heatmap.shape)] = 0.75
    heatmap[tuple(side // 3 for side in heatmap.shape)] = 1.0
    task = Task("binary" if len(classes) == 2 else "multiclass", tuple(classes))
    rest = 0.25 / (len(classes) - 1)
    return StudyResult(
        sources=read_sources(series),
        image=image,
        task=task,
        probabilities=(*(rest,) * (len(classes) - 1), 0.75),
        predicted=(classes[-1],),
        prediction_set=tuple(classes[1:]),
        ood="far from the training images",
        target_class=classes[-1],
        method="Grad-CAM",
        heatmap=heatmap,
        model=make_model({classes[-1]: 0.4}),
    )


def make_model(thresholds: dict[str, float]) -> ModelIdentity:
    """Return a model."""
    return ModelIdentity("resnet18", "ImageNet", "ab" * 32, "cd" * 32, "9.9", "not calibrated", thresholds)


@pytest.fixture
def make_result(tmp_path: Path) -> Callable[..., StudyResult]:
    """Return a builder: make_result(kind, classes=(...), **elements of the source)."""

    def make(
        kind: str = "radiograph", classes: Sequence[str] = ("normal", "lesion"), **elements: object
    ) -> StudyResult:
        return result_of(write_source(tmp_path / f"{kind}-source", kind, **elements), classes)

    return make


def run_tool(*command: str | Path) -> str:
    """Run a tool of dcmtk or dicom3tools and return what it printed; skip where it is not installed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not on this machine (Debian: dcmtk, dicom3tools)")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace", check=False)
    return done.stdout + done.stderr


def referenced(result: StudyResult) -> set[tuple[str, tuple[int, ...] | None]]:
    """Return the instances, with their frames, that an object must refer to."""
    return {(str(one.header.SOPInstanceUID), one.frames) for one in result.sources}

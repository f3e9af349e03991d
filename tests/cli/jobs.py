"""Small folders of studies, and medtl run on them as its users run it: in this process or in another one."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image as PillowImage
from pydicom.uid import ComputedRadiographyImageStorage

from medtl.cli import main
from tests.conftest import build_tiny
from tests.imaging.conftest import build_dataset, fixed_uid, save

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "backbone.name=tiny",
    "backbone.weights=null",
    "preprocessing.size=[32,32]",
    "schedule.head_epochs=1",
    "schedule.unfrozen_epochs=1",
    "schedule.views=1",
    "split.val=0.34",
    "fit.device=cpu",
    "fit.batch_size=8",
)
SETTINGS_3D = ("backbone.name=tiny3d", "preprocessing.size=[8,16,16]", "fit.batch_size=4")


def settings(*overrides: str) -> list[str]:
    """Return the arguments that make a recipe tiny; later overrides win."""
    return [part for override in (*SETTINGS, *overrides) for part in ("--set", override)]


def write_labels(folder: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write labels.csv from rows that share their columns."""
    rows = list(rows)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def draw(row: int, kind: int, shape: tuple[int, ...] = (24, 20)) -> np.ndarray:
    """Return uint8 noise with a bright block whose place says which class it is; none for class 0."""
    pixels = np.random.default_rng(row).integers(0, 120, shape).astype(np.uint8)
    if kind:
        pixels[tuple(slice(kind * extent // 4, (kind + 1) * extent // 4) for extent in shape)] = 250
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write one grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path)
    return path


def write_images(folder: Path, classes: Sequence[str] = ("normal", "lesion"), count: int = 24) -> Path:
    """Write PNGs of patients with two images each, and their labels.csv; return the folder."""
    rows = []
    for row in range(count):
        kind = row // 2 % len(classes)
        path = write_png(folder / "images" / f"{row:03d}.png", draw(row, kind))
        rows.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "label": classes[kind],
                "patient_id": f"CANARY-PATIENT-{row // 2}",
            }
        )
    write_labels(folder, rows)
    return folder


def write_volume(folder: Path, patient: int, kind: int, **elements: object) -> Path:
    """Write an MR series of six slices of 16 x 16."""
    from pydicom.uid import MRImageStorage

    block = draw(patient, kind, (8, 16, 16)).astype(np.uint16)
    for k, pixels in enumerate(block):
        identity = {
            "PatientID": f"CANARY-{patient}",
            "PatientName": "Canary^Kim",
            "PatientBirthDate": "19771231",
            "StudyDate": "20010911",
            "AccessionNumber": "CANARYACC",
            "InstitutionName": "Canary Hospital",
            "StudyInstanceUID": fixed_uid("cli study", patient),
            "SeriesInstanceUID": fixed_uid("cli series", patient, folder.name),
            "SOPInstanceUID": fixed_uid("cli instance", patient, folder.name, k),
            "BitsStored": 12,
            "InstanceNumber": k + 1,
            "PixelSpacing": [2.0, 2.0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, 3.0 * k],
        }
        dataset = build_dataset(pixels, MRImageStorage, **{**identity, **elements})
        save(dataset, folder / f"IM{k:03d}.dcm")
    return folder


def write_volumes(folder: Path, count: int = 12) -> Path:
    """Write a folder of MR series, one a patient, and their labels.csv; return the folder."""
    rows = []
    for patient in range(count):
        path = write_volume(folder / f"case{patient:02d}", patient, patient % 2)
        rows.append({"path": path.name, "label": ("normal", "lesion")[patient % 2]})
    write_labels(folder, rows)
    return folder


def write_radiograph(path: Path, row: int = 0, kind: int | None = None, **elements: object) -> Path:
    """Write one CR image that is full of what must never leave it."""
    identity = {
        "PatientID": "CANARY-CR",
        "PatientName": "Canary^Kim",
        "PatientBirthDate": "19771231",
        "StudyDate": "20010911",
        "AccessionNumber": "CANARYACC",
        "StudyInstanceUID": fixed_uid("cli study", path.name),
        "SeriesInstanceUID": fixed_uid("cli series", path.name),
        "BitsStored": 12,
    }
    pixels = draw(row, row % 2 if kind is None else kind).astype(np.uint16)
    return save(build_dataset(pixels, ComputedRadiographyImageStorage, **{**identity, **elements}), path)


def medtl(*arguments: str | Path) -> Result:
    """Run a command in this process; an exception that is not medtl's own fails the test."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def train(
    data: Path, out: Path, *more: str | Path, overrides: Sequence[str] = (), modality: str = "xray"
) -> Result:
    """Run `medtl train` with the tiny recipe."""
    return medtl("train", "--modality", modality, "--data", data, "--out", out, *settings(*overrides), *more)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fault(result: Result, exit_code: int = 1) -> str:
    """Return the code of the one fault that a command printed; anything more or less fails the test."""
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    faults = [line for line in result.stderr.splitlines() if line.startswith("medtl: [")]
    assert len(faults) == 1, result.stderr
    assert len(faults[0]) <= 210
    return faults[0].removeprefix("medtl: [").split("]")[0]


@contextmanager
def tiny_backbones_registered() -> Iterator[None]:
    """Register `tiny` and `tiny3d`, as the fixture of that name does, for a fixture of a wider scope."""
    from medtl.models.backbones import BACKBONES, BackboneEntry

    before = dict(BACKBONES)
    for name, dims in (("tiny", 2), ("tiny3d", 3)):
        BACKBONES[name] = BackboneEntry(name, "tiny", dims, (32,) * dims, (), partial(build_tiny, dims))
    try:
        yield
    finally:
        BACKBONES.clear()
        BACKBONES.update(before)


def start(*arguments: str | Path, home: Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own, which knows the tiny backbones."""
    environment = {**os.environ, "MEDTL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.jobs", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    with tiny_backbones_registered():
        main()

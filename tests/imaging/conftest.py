"""Write small DICOM, NIfTI, PNG and MedMNIST files with known pixels and geometry."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from medtl.errors import CODES, LINE_LIMIT, ReadError
from medtl.imaging import read_images

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def refusal(source: Path | list[Path]) -> ReadError:
    """Read a source, of which exactly one thing must be refused, in one line and without patient data."""
    refusals: list[ReadError] = []
    read_images(source, refusals=refusals)
    assert len(refusals) == 1, refusals
    line = str(refusals[0])
    assert refusals[0].code in CODES
    assert "\n" not in line and len(line) <= LINE_LIMIT and "canary" not in line.lower()
    assert refusals[0].reason and refusals[0].fix
    return refusals[0]


def fixed_uid(*parts: object) -> UID:
    """Return the same UID for the same parts."""
    return generate_uid(entropy_srcs=["medtl tests", *map(str, parts)])


def build_dataset(pixels: np.ndarray, sop_class: UID, **elements: Any) -> Dataset:
    """Return an uncompressed instance of (H, W) or (H, W, 3) pixels; elements override what is set here."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    colour = pixels.ndim == 3
    defaults = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": fixed_uid("study"),
        "SeriesInstanceUID": fixed_uid("series"),
        "PatientID": "CANARY-7",
        "PatientName": "Canary^Kim",
        "Modality": "MR" if sop_class == MRImageStorage else "CR",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [0.5, 0.25],
    }
    if colour:
        defaults["PlanarConfiguration"] = 0
    for keyword, value in {**defaults, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.HighBit = elements.get("HighBit", dataset.BitsStored - 1)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or generate_uid()
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write an instance as a standard DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def pattern(*shape: int, dtype: str = "uint16", top: int = 4000, seed: int = 0) -> np.ndarray:
    """Return random whole numbers from 0 to top."""
    return np.random.default_rng(seed).integers(0, top + 1, size=shape).astype(dtype)


@pytest.fixture
def make_radiograph(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of one CR image: make_radiograph(pixels, name="a.dcm", syntax=None, **elements)."""

    def make(
        pixels: np.ndarray | None = None, name: str = "cr.dcm", syntax: UID | None = None, **elements: Any
    ) -> Path:
        pixels = pattern(12, 10) if pixels is None else pixels
        elements.setdefault("BitsStored", 12 if pixels.dtype.itemsize == 2 else 8)
        dataset = build_dataset(pixels, ComputedRadiographyImageStorage, **elements)
        if syntax is not None:
            dataset.compress(syntax, generate_instance_uid=False)
        return save(dataset, tmp_path / name)

    return make


@pytest.fixture
def make_series(tmp_path: Path) -> Callable[..., list[Path]]:
    """Return a writer of an MR series whose slice k holds pattern(seed=k); files come back in slice order.

    Slices lie at origin + k * gap along the normal of `orientation`. change(k, dataset) edits a slice before
    it is written; InstanceNumber runs against the slice order, and names against both.
    """

    def make(
        patient: int = 1,
        instances: int = 3,
        folder: str = "mr",
        gap: float = 2.5,
        orientation: tuple[float, ...] = AXIAL,
        origin: tuple[float, float, float] = (-10.0, -20.0, 30.0),
        change: Callable[[int, Dataset], object] | None = None,
        **elements: Any,
    ) -> list[Path]:
        normal = np.cross(orientation[:3], orientation[3:])
        paths = []
        for k in range(instances):
            dataset = build_dataset(
                pattern(6, 5, seed=k),
                MRImageStorage,
                **{
                    "PatientID": f"CANARY-{patient}",
                    "StudyInstanceUID": fixed_uid("study", patient),
                    "SeriesInstanceUID": fixed_uid("series", patient, folder),
                    "SOPInstanceUID": fixed_uid("instance", patient, folder, k),
                    "BitsStored": 12,
                    "InstanceNumber": instances - k,
                    "ImageOrientationPatient": list(orientation),
                    "ImagePositionPatient": [round(float(v), 6) for v in np.array(origin) + k * gap * normal],
                    **elements,
                },
            )
            if change is not None:
                change(k, dataset)
            paths.append(save(dataset, tmp_path / folder / f"{(k * 7) % 10}-{k}-of-{patient}.dcm"))
        return paths

    return make


@pytest.fixture
def make_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of a NIfTI file; edit(header) changes the header alone."""
    import nibabel

    def make(
        values: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        name: str = "t1.nii.gz",
        edit: Callable[[Any], object] | None = None,
        kind: Any = nibabel.Nifti1Image,
    ) -> Path:
        values = pattern(4, 5, 6, dtype="int16") if values is None else values
        data = kind(values, np.diag([2.0, 1.5, 3.0, 1.0]) if affine is None else affine).to_bytes()
        if edit is not None:
            header = kind.header_class(data[: kind.header_class.sizeof_hdr], check=False)
            edit(header)
            data = header.binaryblock + data[len(header.binaryblock) :]
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return make


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of a MedMNIST archive from its arrays."""

    def make(name: str = "tiny.npz", **arrays: np.ndarray) -> Path:
        if not arrays:
            arrays = {
                "train_images": pattern(3, 8, 8, dtype="uint8", top=255),
                "train_labels": np.array([[0], [1], [1]], dtype=np.uint8),
                "test_images": pattern(2, 8, 8, dtype="uint8", top=255, seed=1),
                "test_labels": np.array([[1], [0]], dtype=np.uint8),
            }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        path = tmp_path / name
        path.write_bytes(buffer.getvalue())
        return path

    return make

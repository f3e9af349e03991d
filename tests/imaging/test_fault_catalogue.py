"""Faults of files, headers, pixels, series and labels, numbered as in the project's list of faults (1 to 48).

One table: each case builds one faulty input and says what must become of it, which is a code (it is refused,
in one line that names the file and a remedy), or the exact pixels (it is read, repaired or converted).
"""

import gzip
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    EncapsulatedPDFStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from medtl.data.manifest import load_manifest
from medtl.data.task import TaskConfig
from medtl.errors import LINE_LIMIT, MedtlError
from medtl.imaging.dicom import decoders as decoding
from medtl.imaging.image import Image, VoiTable, find_warning
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_series, scan
from tests.imaging.conftest import (
    build_dataset,
    build_deflate_bomb,
    build_enhanced,
    build_mosaic,
    compress_with_lossless_jpeg,
    fixed_uid,
    pattern,
    refusal,
    save,
)

FLAT = pattern(12, 10)  # the radiograph of most cases
EYE = np.diag([2.0, 1.5, 3.0, 1.0])  # the affine of most NIfTI files


def slices(*seeds: int) -> NDArray:
    """Return the volume (1, D, 6, 5) that make_series writes, of the slices with these seeds."""
    return np.stack([pattern(6, 5, seed=seed) for seed in seeds])[None]


@dataclass(frozen=True)
class Kit:
    """Ways to build one faulty input in a folder of its own."""

    folder: Path
    radiograph: Callable[..., Path]
    series: Callable[..., list[Path]]
    nifti: Callable[..., Path]
    patch: pytest.MonkeyPatch

    def write(self, name: str, data: bytes) -> Path:
        """Write a file below the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def rewrite(self, path: Path, edit: Callable[[bytes], bytes]) -> Path:
        """Change the bytes of a file."""
        path.write_bytes(edit(path.read_bytes()))
        return path

    def change(self, edit: Callable[[Dataset], object], path: Path | None = None) -> Path:
        """Change the elements of a radiograph."""
        dataset = pydicom.dcmread(path or self.radiograph())
        edit(dataset)
        return save(dataset, self.folder / "changed" / "cr.dcm")

    def stack(self, change: Callable[[int, Dataset], object] | None = None, **options: Any) -> Path:
        """Write a series of five slices, and return its folder."""
        return self.series(**{"instances": 5, "change": change, **options})[0].parent

    def table(self, text: str | bytes, name: str = "labels.csv") -> Path:
        """Write images 0.dcm to 5.dcm of six patients, and a table beside them."""
        for number in range(6):
            uids = {name: fixed_uid(number, name) for name in ("SeriesInstanceUID", "StudyInstanceUID")}
            self.radiograph(pattern(4, 4, seed=number), f"data/{number}.dcm", PatientID=f"C{number}", **uids)
        self.write(f"data/{name}", text if isinstance(text, bytes) else text.encode())
        return self.folder / "data"


@dataclass(frozen=True)
class Reads:
    """What must be read: the pixels (C, *spatial) of each image, words of its notes, files only counted."""

    pixels: Sequence[NDArray]
    note: str = ""
    skipped: int = 0
    also: Callable[[Image], object] = lambda image: True


@dataclass(frozen=True)
class Labels:
    """What a table must be read as: the names of the classes that its rows have."""

    classes: Sequence[str]


@dataclass(frozen=True)
class LabelFault:
    """The code and a part of one problem that a table must be refused with."""

    code: str
    says: str


Expected = str | Reads | Labels | LabelFault
Case = tuple[int, str, Callable[[Kit], Path], Expected]


def override(number: int | None, **elements: Any) -> Callable[[int, Dataset], None]:
    """Return a change of one slice, or of all: an element of None is removed."""

    def change(k: int, dataset: Dataset) -> None:
        for keyword, value in elements.items() if number in (None, k) else ():
            setattr(dataset, keyword, value) if value is not None else delattr(dataset, keyword)

    return change


def replace_bytes(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Return an edit of the bytes of a file, which must hold `old`."""

    def edit(data: bytes) -> bytes:
        assert old in data and len(old) == len(new)
        return data.replace(old, new)

    return edit


def cut(share: float) -> Callable[[bytes], bytes]:
    """Return an edit that keeps a share of a file."""
    return lambda data: data[: int(len(data) * share)]


def flip(place: float) -> Callable[[bytes], bytes]:
    """Return an edit that inverts the byte at a place between 0 and 1."""

    def edit(data: bytes) -> bytes:
        at = int(len(data) * place)
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]

    return edit


# 1 to 12: files


def _fifo(kit: Kit) -> Path:
    kit.folder.mkdir(exist_ok=True)
    os.mkfifo(kit.folder / "pipe.dcm")
    return kit.folder / "pipe.dcm"


def _locked(kit: Kit) -> Path:
    locked, opened = kit.radiograph(), Path.open

    def guarded(path: Path, *args: Any, **options: Any) -> Any:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    kit.patch.setattr(Path, "open", guarded)
    return locked


def _beside(name: str, data: bytes | Dataset) -> Callable[[Kit], Path]:
    """Write something beside a radiograph, and return the folder of both."""

    def build(kit: Kit) -> Path:
        kit.radiograph(name="study/cr.dcm")
        if isinstance(data, Dataset):
            save(data, kit.folder / "study" / name)
        else:
            kit.write(f"study/{name}", data)
        return kit.folder / "study"

    return build


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HTML = b"<!DOCTYPE html><html>404</html>"
SR = build_dataset(pattern(4, 4), BasicTextSRStorage)
PDF = build_dataset(pattern(4, 4), EncapsulatedPDFStorage)
DIRECTORY = build_dataset(pattern(4, 4), MediaStorageDirectoryStorage)


def _preamble(magic: bytes) -> Callable[[Kit], Path]:
    return lambda kit: kit.rewrite(kit.radiograph(), lambda data: magic.ljust(128, b"\0") + data[128:])


FILES: list[Case] = [
    (1, "an empty DICOM file", lambda kit: kit.write("a.dcm", b""), "file-empty"),
    (1, "an empty NIfTI file", lambda kit: kit.write("a.nii.gz", b""), "file-empty"),
    (1, "an empty slice", lambda kit: kit.rewrite(kit.series(instances=4)[1], cut(0)).parent, "file-empty"),
    (2, "DICOM cut in its pixels", lambda kit: kit.rewrite(kit.radiograph(), cut(0.95)), "dicom-truncated"),
    (2, "DICOM cut in its header", lambda kit: kit.rewrite(kit.radiograph(), cut(0.5)), "dicom-truncated"),
    (
        2,
        "JPEG 2000 cut in its pixels",
        lambda kit: kit.rewrite(kit.radiograph(pattern(64, 64), syntax=JPEG2000Lossless), cut(0.9)),
        "dicom-truncated",
    ),
    (
        2,
        "a slice cut short",
        lambda kit: kit.rewrite(kit.series(instances=4)[2], cut(0.97)).parent,
        "dicom-truncated",
    ),
    (3, "gzip cut in half", lambda kit: kit.rewrite(kit.nifti(), cut(0.5)), "nifti-truncated"),
    (3, "gzip without its end", lambda kit: kit.rewrite(kit.nifti(), lambda d: d[:-4]), "nifti-truncated"),
    (4, "gzip with a flipped byte", lambda kit: kit.rewrite(kit.nifti(), flip(0.9)), "nifti-damaged"),
    (
        4,
        "gzip with a wrong checksum",
        lambda kit: kit.rewrite(kit.nifti(), lambda data: data[:-8] + b"\0\0\0\0" + data[-4:]),
        "nifti-damaged",
    ),
    (5, "HTML named NIfTI", lambda kit: kit.write("a.nii", HTML), "file-unknown"),
    (5, "LFS pointer named NIfTI", lambda kit: kit.write("a.nii.gz", LFS), "file-unknown"),
    (5, "LFS pointer named DICOM", lambda kit: kit.write("a.dcm", LFS), "file-unknown"),
    (
        6,
        "gzip named .nii",
        lambda kit: kit.nifti().rename(kit.folder / "a.nii"),
        Reads([pattern(4, 5, 6)[None]]),
    ),
    (
        6,
        "plain NIfTI named .nii.gz",
        lambda kit: kit.nifti(name="a.nii").rename(kit.folder / "b.nii.gz"),
        Reads([pattern(4, 5, 6)[None]]),
    ),
    (
        7,
        "no preamble",
        lambda kit: kit.rewrite(kit.radiograph(), lambda data: data[132:]),
        Reads([FLAT[None]]),
    ),
    (8, "text beside images", _beside("notes.txt", b"notes"), Reads([FLAT[None]], skipped=1)),
    (
        8,
        "a program beside images",
        _beside("viewer", b"\x7fELF" + b"\0" * 99),
        Reads([FLAT[None]], skipped=1),
    ),
    (9, "a structured report beside images", _beside("sr.dcm", SR), Reads([FLAT[None]], skipped=1)),
    (9, "a PDF beside images", _beside("pdf.dcm", PDF), Reads([FLAT[None]], skipped=1)),
    (9, "a DICOMDIR beside images", _beside("DICOMDIR", DIRECTORY), Reads([FLAT[None]], skipped=1)),
    (9, "a structured report by name", lambda kit: save(SR, kit.folder / "sr.dcm"), "dicom-no-image"),
    (10, "a Windows program in the preamble", _preamble(b"MZ\x90\0"), "file-unknown"),
    (10, "a Linux program in the preamble", _preamble(b"\x7fELF\x02\x01"), "file-unknown"),
    (10, "TIFF in the preamble, as slides have", _preamble(b"II*\0"), Reads([FLAT[None]])),
    (11, "a pipe", _fifo, "file-unknown"),
    (11, "a device", lambda kit: Path("/dev/zero"), "file-unknown"),
    (12, "a file that may not be opened", _locked, "file-unreadable"),
]


# 13 to 21: headers


def _forget_syntax(path: Path) -> Path:
    dataset = pydicom.dcmread(path)
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return path


def _bad_vr(keyword: str) -> Callable[[Kit], Path]:
    """Give an element a value representation that there is not."""

    def build(kit: Kit) -> Path:
        tag = pydicom.tag.Tag(keyword)
        head = struct.pack("<HH", tag.group, tag.element)
        return kit.rewrite(kit.radiograph(), lambda data: data.replace(head + b"US", head + b"QQ"))

    return build


def _unknown_vr(keyword: str, dataset: Dataset) -> Callable[[Kit], Path]:
    """Write a dataset, and then give one of its elements of US a value representation that there is not."""

    def build(kit: Kit) -> Path:
        tag = pydicom.tag.Tag(keyword)
        head = struct.pack("<HH", tag.group, tag.element)
        path = save(dataset, kit.folder / "odd.dcm")
        return kit.rewrite(path, replace_bytes(head + b"US", head + b"QQ"))

    return build


def _lut(entries: Sequence[int]) -> Dataset:
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [len(entries), 0, 16], list(entries), "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    return table


def _packed_colour() -> Dataset:
    dataset = build_dataset(pattern(40, 36, 3, dtype="uint8", top=255), ComputedRadiographyImageStorage)
    dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
    return dataset


def _toned() -> Dataset:
    steps = pattern(12, 10, dtype="uint8", top=3)
    return build_dataset(
        steps, ComputedRadiographyImageStorage, VOILUTSequence=[_lut((10, 200, 3000, 65000))]
    )


def _text(keyword: str, text: str) -> Callable[[int, Dataset], None]:
    """Return a change of slice 2: text in place of a number, which pydicom itself would not write."""

    def change(k: int, dataset: Dataset) -> None:
        if k == 2:
            dataset.add(pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(keyword), "DS", len(text), text.encode(), 0, False, True
            ))  # fmt: skip

    return change


def _overlong(kit: Kit) -> Path:
    """Write numbers with 20 digits, where DICOM allows 16 characters."""

    def change(k: int, dataset: Dataset) -> None:
        _text("PixelSpacing", "0.50000000000000000000\\0.25000000000000000000")(2, dataset)
        _text("ImagePositionPatient", f"-10.0000000000000000000\\-20\\{30 + 2.5 * k:.20f}")(2, dataset)

    return kit.stack(change)


def _nifti(edit: Callable[[Any], object], **options: Any) -> Callable[[Kit], Path]:
    return lambda kit: kit.nifti(edit=edit, **options)


def _set(field: str, value: Any) -> Callable[[Any], None]:
    def edit(header: Any) -> None:
        header[field] = value

    return edit


def _no_forms(header: Any) -> None:
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def _singular(header: Any) -> None:
    header.set_qform(None, code=0)
    header["srow_x"] = 0


def _other_model(kit: Kit) -> Path:
    return kit.radiograph(Modality="CT", SOPClassUID=pydicom.uid.CTImageStorage, BodyPartExamined="KNEE")


HEADERS: list[Case] = [
    (
        13,
        "no transfer syntax",
        lambda kit: _forget_syntax(kit.radiograph()),
        Reads([FLAT[None]], "its bytes say which"),
    ),
    (
        13,
        "no transfer syntax of compressed pixels",
        lambda kit: _forget_syntax(kit.radiograph(syntax=RLELossless)),
        "dicom-transfer-syntax",
    ),
    (
        13,
        "two transfer syntaxes",
        lambda kit: kit.rewrite(
            kit.radiograph(), replace_bytes(b"1.2.840.10008.1.2.1\0", b"1.2.840\\10008.1.2.1\0")
        ),
        "dicom-transfer-syntax",
    ),
    (14, "rows with an unknown representation", _bad_vr("Rows"), "dicom-header"),
    (14, "bits with an unknown representation", _bad_vr("BitsAllocated"), "dicom-header"),
    (
        14,
        "planar configuration with an unknown representation",
        _unknown_vr("PlanarConfiguration", _packed_colour()),
        "dicom-header",
    ),
    (
        14,
        "a VOI LUT with an unknown representation",
        _unknown_vr("LUTDescriptor", _toned()),
        Reads([pattern(12, 10, dtype="uint8", top=3)[None]], also=lambda image: image.facts.voi is None),
    ),
    (14, "letters as spacing", lambda kit: kit.stack(_text("PixelSpacing", "canary\\1 ")), "series-spacing"),
    (
        14,
        "letters as position",
        lambda kit: kit.stack(_text("ImagePositionPatient", "1\\canary\\3")),
        "series-geometry",
    ),
    (
        14,
        "letters as slope",
        lambda kit: kit.stack(_text("RescaleSlope", "canary")),
        "dicom-rescale",
    ),
    (14, "no rows", lambda kit: kit.radiograph(Rows=0), "dicom-header"),
    (14, "bits that contradict each other", lambda kit: kit.radiograph(HighBit=15), "dicom-bits"),
    (15, "decimals of 20 digits", _overlong, Reads([slices(*range(5))])),
    (16, "no spacing", lambda kit: kit.stack(override(None, PixelSpacing=None)), "series-spacing"),
    (16, "zero spacing", lambda kit: kit.stack(override(1, PixelSpacing=[0, 0])), "series-spacing"),
    (16, "negative spacing", lambda kit: kit.stack(override(None, PixelSpacing=[-1, 1])), "series-spacing"),
    (
        16,
        "a projection without spacing",
        lambda kit: kit.radiograph(PixelSpacing=None),
        Reads([FLAT[None]], also=lambda image: image.spacing_mm is None),
    ),
    (17, "no position", lambda kit: kit.stack(override(2, ImagePositionPatient=None)), "series-geometry"),
    (17, "an empty position", lambda kit: kit.stack(override(2, ImagePositionPatient=[])), "series-geometry"),
    (
        17,
        "NaN as position",
        lambda kit: kit.stack(override(2, ImagePositionPatient=["nan", "0", "0"])),
        "series-geometry",
    ),
    (
        17,
        "no orientation",
        lambda kit: kit.stack(override(None, ImageOrientationPatient=None)),
        "series-geometry",
    ),
    (
        17,
        "an orientation that is none",
        lambda kit: kit.stack(override(None, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
        "series-geometry",
    ),
    (18, "neither qform nor sform", _nifti(_no_forms), "nifti-affine"),
    (18, "qform and sform in conflict", _nifti(lambda h: h.set_qform(EYE * 2, code=2)), "nifti-affine"),
    (
        18,
        "qform and sform of two spaces",
        _nifti(lambda h: h.set_qform(EYE * 2, code=1)),
        Reads([pattern(4, 5, 6)[None]], "placed by its sform (aligned); its qform (scanner) is 1"),
    ),
    (18, "a singular sform", _nifti(_singular), "nifti-affine"),
    (18, "NaN in the sform", _nifti(_set("srow_y", np.nan)), "nifti-affine"),
    (19, "pixels at byte 0", _nifti(_set("vox_offset", 0)), "nifti-header"),
    (19, "pixels inside the header", _nifti(_set("vox_offset", 100)), "nifti-header"),
    (
        20,
        "an unknown character set",
        lambda kit: kit.rewrite(
            kit.radiograph(SpecificCharacterSet="ISO_IR 100"), replace_bytes(b"ISO_IR 100", b"NOT_A_SET ")
        ),
        Reads([FLAT[None]]),
    ),
    (
        20,
        "names in another character set",
        lambda kit: kit.rewrite(
            kit.radiograph(SpecificCharacterSet="ISO_IR 192"),
            replace_bytes(b"Canary^Kim", b"Canary\xff\xfe\xfd^"),
        ),
        Reads([FLAT[None]]),
    ),
]


# 22 to 32: pixels


def _palette(kit: Kit) -> Path:
    tables: dict[str, Any] = {}
    for offset, colour in enumerate(("Red", "Green", "Blue")):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(4, dtype="<u2") * 256 + offset).tobytes()
    return kit.radiograph(STEPS, PhotometricInterpretation="PALETTE COLOR", **tables)


def _slopes(k: int, dataset: Dataset) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -10 * k


def _float(value: float) -> Callable[[Kit], Path]:
    def edit(dataset: Dataset) -> None:
        values = np.ones((12, 10), dtype="<f4")
        values[3, 4] = value
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()

    return lambda kit: kit.change(edit)


def _hole(value: float) -> Callable[[Kit], Path]:
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = value
    return lambda kit: kit.nifti(values)


def _deflate_bomb(kit: Kit) -> Path:
    return kit.write("bomb.dcm", build_deflate_bomb(kit.radiograph().read_bytes(), 200))


def _gzip_bomb(kit: Kit) -> Path:
    head = gzip.decompress(kit.nifti().read_bytes())
    return kit.write("bomb.nii.gz", gzip.compress(head + bytes(2**26)))


def _abort(kit: Kit) -> Path:
    """Let the decoder abort, as gdcm does on some malformed data."""
    child = (
        sys.executable,
        "-c",
        "import os, sys; print(flush=True); sys.stdin.buffer.readline(); os.abort()",
    )
    kit.patch.setattr(decoding, "CHILD", child)
    return kit.change(compress_with_lossless_jpeg)


def _garbage(syntax: pydicom.uid.UID) -> Callable[[Kit], Path]:
    """Overwrite compressed pixels with bytes of no meaning, behind their first marker."""

    def build(kit: Kit) -> Path:
        path = kit.radiograph(pattern(64, 64), syntax=syntax)
        return kit.rewrite(path, lambda data: data[:-1500] + b"\x55" * 1400 + data[-100:])

    return build


STEPS = pattern(12, 10, dtype="uint8", top=3)
COLOUR = pattern(12, 10, 3, dtype="uint8", top=255)
GREY = np.dstack([COLOUR[..., 0], np.full((12, 10, 2), 128, np.uint8)])
LEVELS = (10, 200, 3000, 65000)

PIXELS: list[Case] = [
    (
        22,
        "MONOCHROME1 of 12 bits",
        lambda kit: kit.radiograph(PhotometricInterpretation="MONOCHROME1"),
        Reads([4095.0 - FLAT[None]], "inverted from MONOCHROME1"),
    ),
    (
        22,
        "MONOCHROME1 with slope and intercept",
        lambda kit: kit.radiograph(
            PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-100
        ),
        Reads([(4095.0 - FLAT[None]) * 2 - 100], "inverted from MONOCHROME1"),
    ),
    (
        22,
        "MONOCHROME1, signed",
        lambda kit: kit.radiograph(
            FLAT.astype("int16"), PhotometricInterpretation="MONOCHROME1", BitsStored=16
        ),
        Reads([-1.0 - FLAT[None]], "inverted from MONOCHROME1"),
    ),
    (23, "a palette", _palette, Reads([np.stack([STEPS * 256.0 + offset for offset in range(3)])])),
    (23, "RGB", lambda kit: kit.radiograph(COLOUR), Reads([np.moveaxis(COLOUR, -1, 0)])),
    (
        23,
        "YBR without chroma",
        lambda kit: kit.radiograph(GREY, PhotometricInterpretation="YBR_FULL"),
        Reads([np.stack([GREY[..., 0]] * 3)]),
    ),
    (
        23,
        "an unknown photometric interpretation",
        lambda kit: kit.radiograph(PhotometricInterpretation="CANARY"),
        "dicom-photometric",
    ),
    (
        24,
        "a Modality LUT",
        lambda kit: kit.radiograph(STEPS, ModalityLUTSequence=[_lut(LEVELS)]),
        Reads([np.array(LEVELS)[STEPS][None]]),
    ),
    (
        24,
        "a VOI LUT, kept beside the values",
        lambda kit: kit.radiograph(STEPS, VOILUTSequence=[_lut(LEVELS)]),
        Reads([STEPS[None]], also=lambda image: isinstance(image.facts.voi, VoiTable)),
    ),
    (
        25,
        "a slope per slice",
        lambda kit: kit.stack(_slopes),
        Reads([np.stack([pattern(6, 5, seed=k) * (k + 1.0) - 10 * k for k in range(5)])[None]]),
    ),
    (25, "a slope of zero", lambda kit: kit.radiograph(RescaleSlope=0, RescaleIntercept=0), "dicom-rescale"),
    (26, "NaN in DICOM", _float(np.nan), "dicom-not-finite"),
    (26, "infinity in DICOM", _float(np.inf), "dicom-not-finite"),
    (26, "NaN in NIfTI", _hole(np.nan), "nifti-not-finite"),
    (26, "infinity in NIfTI", _hole(-np.inf), "nifti-not-finite"),
    (
        27,
        "a constant radiograph",
        lambda kit: kit.radiograph(np.full((12, 10), 7, "uint16")),
        Reads(
            [np.full((1, 12, 10), 7.0)],
            also=lambda image: find_warning(image) and find_warning(image).code == "image-constant",  # type: ignore[union-attr]
        ),
    ),
    (
        28,
        "complex NIfTI",
        lambda kit: kit.nifti(np.ones((4, 5, 6), np.complex64)),
        "nifti-type",
    ),
    (
        28,
        "RGB NIfTI",
        lambda kit: kit.nifti(np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))),
        "nifti-type",
    ),
    (29, "65535 rows and columns", lambda kit: kit.radiograph(Rows=65535, Columns=65535), "dicom-too-large"),
    (
        29,
        "two thousand million frames",
        lambda kit: kit.radiograph(NumberOfFrames=2 * 10**9),
        "dicom-multiframe",
    ),
    (
        29,
        "NIfTI of 32767 cubed",
        _nifti(_set("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1])),
        "nifti-too-large",
    ),
    (29, "more rows than pixels", lambda kit: kit.radiograph(Rows=500), "dicom-truncated"),
    (29, "fewer rows than pixels", lambda kit: kit.radiograph(Rows=3), "dicom-pixels"),
    (30, "deflated zeros", _deflate_bomb, "dicom-too-large"),
    (31, "gzip of zeros", _gzip_bomb, "nifti-too-large"),
    (32, "a decoder that aborts", _abort, "dicom-decoder"),
    (32, "garbage as RLE", _garbage(RLELossless), "dicom-pixels"),
    (32, "garbage as JPEG-LS", _garbage(JPEGLSLossless), "dicom-pixels"),
]


# 33 to 43: series


def _mosaic(kit: Kit) -> Path:
    return save(build_mosaic(pattern(7, 8, 6)), kit.folder / "mosaic.dcm")


def _bare_mosaic(kit: Kit) -> Path:
    dataset = build_mosaic(pattern(7, 8, 6))
    del dataset[0x00291010]
    return save(dataset, kit.folder / "mosaic.dcm")


def _without(*missing: int) -> Callable[[Kit], Path]:
    def build(kit: Kit) -> Path:
        paths = kit.series(instances=6)
        for number in missing:
            paths[number].unlink()
        return paths[0].parent

    return build


def _copy(kit: Kit) -> Path:
    paths = kit.series(instances=5)
    return kit.write("mr/copy.dcm", paths[1].read_bytes()).parent


def _at(number: int, *position: float) -> Callable[[int, Dataset], None]:
    return override(number, ImagePositionPatient=list(position))


def _turn(k: int, dataset: Dataset) -> None:
    if k >= 3:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [4.0 * k, 0, 0]


def _several(**differs: Sequence[Any]) -> Callable[[Kit], Path]:
    """Write two series of three slices into one folder."""

    def build(kit: Kit) -> Path:
        for number in range(2):
            elements = {keyword: values[number] for keyword, values in differs.items()}
            kit.series(patient=number, folder="both", **elements)
        return kit.folder / "both"

    return build


def _scramble(k: int, dataset: Dataset) -> None:
    dataset.InstanceNumber = [3, 1, 5, 2, 4][k]


def _interleave(keyword: str, count: int = 2) -> Callable[[Kit], Path]:
    """Write `count` images at each of three positions, separated by one element."""

    def change(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, 1 + k % count)
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k // count)]

    return lambda kit: kit.stack(change, instances=3 * count)


def _tilt(k: int, dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [0, 0.5 * k, 2.5 * k]


def _enhanced(kit: Kit, **elements: Any) -> Path:
    positions = [(0, 0, 2.5 * place) for place in (2, 0, 1)]
    dataset = build_enhanced(pattern(3, 6, 5), positions, (1, 0, 0, 0, 1, 0), **elements)
    return save(dataset, kit.folder / "enhanced.dcm")


def _other_matrix(number: int) -> Callable[[int, Dataset], None]:
    def change(k: int, dataset: Dataset) -> None:
        if k == number:
            dataset.Rows, dataset.PixelData = 4, pattern(4, 5).tobytes()

    return change


ECHOES = [slices(0, 2, 4), slices(1, 3, 5)]
FRAMES = pattern(3, 6, 5)
MOVIE = pattern(4, 5, 6, 3, dtype="int16")

SERIES: list[Case] = [
    (33, "a mosaic", _mosaic, Reads([pattern(7, 8, 6)[None]])),
    (33, "a mosaic without its layout", _bare_mosaic, "dicom-mosaic"),
    (34, "one slice missing", _without(2), "series-gap"),
    (34, "two slices missing", _without(2, 3), "series-gap"),
    (
        34,
        "every second slice missing",
        lambda kit: kit.stack(override(None, SpacingBetweenSlices=1.25, SliceThickness=1.25)),
        "series-gap",
    ),
    (35, "an exact copy", _copy, Reads([slices(*range(5))], "exact copies left out", skipped=1)),
    (
        35,
        "one identifier for all",
        lambda kit: kit.stack(override(None, SOPInstanceUID=fixed_uid("same"))),
        "series-duplicate",
    ),
    (35, "two at one position", lambda kit: kit.stack(_at(2, -10, -20, 32.5)), "series-positions"),
    (
        36,
        "two orientations",
        lambda kit: kit.stack(_turn, instances=6),
        Reads([slices(0, 1, 2), slices(5, 4, 3)]),
    ),
    (
        36,
        "a localizer among slices",
        lambda kit: kit.stack(override(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        Reads([slices(1, 2, 3, 4)], skipped=1),
    ),
    (
        37,
        "two series",
        _several(PatientID=["CANARY-1"] * 2, StudyInstanceUID=[fixed_uid("one")] * 2),
        Reads([slices(0, 1, 2)] * 2),
    ),
    (38, "two patients", _several(), Reads([slices(0, 1, 2)] * 2)),
    (
        38,
        "two patients with one series UID",
        _several(SeriesInstanceUID=[fixed_uid("shared")] * 2),
        Reads([slices(0, 1, 2)] * 2),
    ),
    (39, "InstanceNumber scrambled", lambda kit: kit.stack(_scramble), Reads([slices(*range(5))])),
    (40, "two echoes", _interleave("EchoTime"), Reads(ECHOES)),
    (40, "two time points", _interleave("TemporalPositionIdentifier"), Reads(ECHOES)),
    (40, "two b-values", _interleave("DiffusionBValue"), Reads(ECHOES)),
    (
        40,
        "two acquisitions",
        _interleave("AcquisitionNumber"),
        Reads(ECHOES, "separated by AcquisitionNumber"),
    ),
    (40, "two images that nothing distinguishes", _interleave("InstanceNumber"), "series-positions"),
    (
        40,
        "4D NIfTI",
        lambda kit: kit.nifti(MOVIE),
        Reads([MOVIE[..., time][None] for time in range(3)], "volumes of its file"),
    ),
    (40, "5D NIfTI", lambda kit: kit.nifti(pattern(3, 3, 3, 1, 3, dtype="int16")), "nifti-dimensions"),
    (41, "gantry tilt", lambda kit: kit.stack(_tilt), "series-tilted"),
    (41, "a gap of another width", lambda kit: kit.stack(_at(4, -10, -20, 41.0)), "series-irregular"),
    (41, "a slice moved sideways", lambda kit: kit.stack(_at(2, -10, -19, 35)), "series-irregular"),
    (42, "an enhanced image", _enhanced, Reads([FRAMES[[1, 2, 0]][None]])),
    (
        42,
        "an enhanced image with a slope per frame",
        lambda kit: _enhanced(kit, frame_RescaleSlope=[1, 2, 3], frame_RescaleIntercept=[0, -5, 5]),
        Reads(
            [
                (FRAMES * np.reshape([1.0, 2, 3], (3, 1, 1)) + np.reshape([0, -5, 5], (3, 1, 1)))[[1, 2, 0]][
                    None
                ]
            ]
        ),
    ),
    (42, "frames without positions", lambda kit: kit.radiograph(NumberOfFrames=2), "dicom-multiframe"),
    (43, "one slice of another size", lambda kit: kit.stack(_other_matrix(2)), "series-gap"),
    (
        43,
        "two sizes in a folder",
        lambda kit: kit.stack(_other_matrix(4)),
        Reads([slices(0, 1, 2, 3), pattern(4, 5)[None]]),
    ),
]


# 44 to 48: labels

SOUND = ("ill", "sound")
PLAIN = "path,label\n0.dcm,sound\n1.dcm,ill\n2.dcm,sound\n"
WINDOWS = PLAIN.replace(",", "\t").replace("\n", "\r\n")
PARTS = "path,label,patient_id,split\n0.dcm,sound,P1,train\n1.dcm,ill,P2,train\n2.dcm,sound,P1,test\n"

LABELS: list[Case] = [
    (
        44,
        "a row twice",
        lambda kit: kit.table(PLAIN + "1.dcm,ill\n"),
        LabelFault("label-rows", "row 5: duplicate of row 3"),
    ),
    (
        44,
        "two labels for one file",
        lambda kit: kit.table(PLAIN + "1.dcm,sound\n"),
        LabelFault("label-rows", "row 5: conflicting label"),
    ),
    (
        45,
        "a file that is not there",
        lambda kit: kit.table(PLAIN + "9.dcm,ill\n"),
        LabelFault("label-rows", "row 5: 9.dcm does not exist"),
    ),
    (
        45,
        "a path out of the folder",
        lambda kit: kit.table(PLAIN + "../9.dcm,ill\n"),
        LabelFault("label-rows", "row 5: ../9.dcm leads out"),
    ),
    (
        46,
        "no label",
        lambda kit: kit.table(PLAIN + "3.dcm,\n"),
        LabelFault("label-rows", "row 5: label is empty"),
    ),
    (
        46,
        "classes that differ in case",
        lambda kit: kit.table(PLAIN + "3.dcm,Ill\n"),
        LabelFault("label-rows", "one class?"),
    ),
    (
        46,
        "one class",
        lambda kit: kit.table("path,label\n0.dcm,ill\n"),
        LabelFault("label-rows", "two or more"),
    ),
    (47, "a mark of byte order", lambda kit: kit.table(PLAIN.encode("utf-8-sig")), Labels(SOUND)),
    (47, "UTF-16", lambda kit: kit.table(PLAIN.encode("utf-16")), Labels(SOUND)),
    (47, "semicolons", lambda kit: kit.table(PLAIN.replace(",", ";")), Labels(SOUND)),
    (47, "tabs and CRLF", lambda kit: kit.table(WINDOWS), Labels(SOUND)),
    (
        47,
        "Windows-1252",
        lambda kit: kit.table(PLAIN.replace("ill", "gestört").encode("cp1252")),
        Labels(["gestört", "sound"]),
    ),
    (47, "bytes of no text", lambda kit: kit.table(b"\0\1\2\0" * 9), LabelFault("label-table", "")),
    (
        48,
        "a patient in train and test",
        lambda kit: kit.table(PARTS),
        LabelFault("patient-leak", "rows 2, 4"),
    ),
]

CASES = [*FILES, *HEADERS, *PIXELS, *SERIES, *LABELS]

# Cases that fail as yet, and why.
# Faults that a model meets, not a reader.
OTHER_MODELS: Mapping[str, PreprocessingConfig] = {
    "another modality": PreprocessingConfig(modalities=("CR", "DX")),
    "another body part": PreprocessingConfig(body_parts=("CHEST",)),
}


@pytest.fixture
def kit(
    tmp_path: Path,
    make_radiograph: Callable,
    make_series: Callable,
    make_nifti: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Kit:
    return Kit(tmp_path, make_radiograph, make_series, make_nifti, monkeypatch)


@pytest.mark.parametrize(
    ("build", "expected"),
    [pytest.param(build, expected, id=f"{fault:02d} {name}") for fault, name, build, expected in CASES],
)
def test_a_fault_is_refused_by_name_or_read_exactly(
    kit: Kit, build: Callable[[Kit], Path], expected: Expected
) -> None:
    source = build(kit)
    if isinstance(expected, str):
        assert_refused(source, expected)
    elif isinstance(expected, Reads):
        assert_read(source, expected)
    elif isinstance(expected, Labels):
        manifest = load_manifest(source, None, TaskConfig())
        assert sorted(manifest.task.classes) == list(expected.classes) and len(manifest.samples) == 3
    else:
        assert_table_refused(source, expected)


def assert_refused(source: Path, code: str) -> None:
    """Check that a source is refused with a code, in a line that names it."""
    error = refusal(source)
    where = Path(error.where)
    assert error.code == code, str(error)
    assert where == source or source in where.parents or where.parent == source.parent
    assert where.name in str(error)


def assert_read(source: Path, expected: Reads) -> None:
    """Check the images of a source, value for value."""
    found = scan(source)
    assert (found.refusals, found.skipped) == ((), expected.skipped)
    images = [read_series(series) for series in found.series]
    assert [image.pixels.shape for image in images] == [pixels.shape for pixels in expected.pixels]
    for image, pixels in zip(images, expected.pixels, strict=True):
        np.testing.assert_array_equal(image.pixels, pixels)
        assert expected.note in " ".join(image.facts.notes) and expected.also(image)
        assert "canary" not in repr(image.facts).lower().replace(str(source).lower(), "")


def assert_table_refused(folder: Path, expected: LabelFault) -> None:
    """Check the code of a table's error, its one line, and the list of all its problems."""
    with pytest.raises(MedtlError) as caught:
        load_manifest(folder, None, TaskConfig())
    line = str(caught.value)
    assert caught.value.code == expected.code
    assert "\n" not in line and len(line) <= LINE_LIMIT and "labels.csv" in line and caught.value.fix
    assert expected.says in " ".join(getattr(caught.value, "problems", ()))


@pytest.mark.parametrize("config", OTHER_MODELS.values(), ids=[f"21 {name}" for name in OTHER_MODELS])
def test_an_image_of_another_kind_than_the_models_is_refused(kit: Kit, config: PreprocessingConfig) -> None:
    path = kit.radiograph(Modality="MG", BodyPartExamined="BREAST")
    (series,) = scan(path).series
    with pytest.raises(MedtlError) as caught:
        prepare_image(read_series(series), config)
    line = str(caught.value)
    assert caught.value.code == "image-modality" and caught.value.fix
    assert path.name in line and len(line) <= LINE_LIMIT and "canary" not in line.lower()


def test_every_fault_has_its_cases() -> None:
    numbers = [fault for fault, *_ in CASES] + [21] * len(OTHER_MODELS)
    assert set(numbers) == set(range(1, 49))
    assert len(numbers) >= 90
    assert len({(fault, name) for fault, name, *_ in CASES}) == len(CASES)

"""Write small DICOM, NIfTI, PNG and MedMNIST files with known pixels and geometry."""

import gzip
import io
import math
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    UID,
    ComputedRadiographyImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    MRImageStorage,
    generate_uid,
)

from medtl.errors import CODES, LINE_LIMIT, ReadError
from medtl.imaging.reader import read_images
from medtl.imaging.series import Series

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


def mangle(series: Series, sound: bytes, damaged: bytes) -> Series:
    """Put other bytes in the place of those that stand once in a series' one file."""
    content = series.files[0].read_bytes()
    assert content.count(sound) == 1
    series.files[0].write_bytes(content.replace(sound, damaged))
    return series


def malformed(series: Series) -> Series:
    """Say that PatientAge, of four bytes, holds numbers of eight: pydicom raises, and quotes it."""
    return mangle(series, b"\x10\x00\x10\x10AS\x04\x00", b"\x10\x00\x10\x10FD\x04\x00")


def build_enhanced(
    planes: np.ndarray, positions: Sequence[Sequence[float]], orientation: Sequence[float], **elements: Any
) -> Dataset:
    """Return an enhanced MR image of planes (F, H, W), each at its position (LPS mm).

    Elements with the prefix `frame_` are lists of one value per frame: frame_RescaleSlope=[1, 2].
    """
    own = {name[6:]: elements.pop(name) for name in [*elements] if name.startswith("frame_")}
    spacing = elements.pop("PixelSpacing", [0.5, 0.25])
    dataset = build_dataset(
        planes[0],
        EnhancedMRImageStorage,
        **{
            "Modality": "MR",
            "BitsStored": 12,
            "PixelSpacing": None,
            "NumberOfFrames": len(planes),
            **elements,
        },
    )
    dataset.PixelData = planes.tobytes()
    measures = _item(PixelSpacing=spacing, SliceThickness=1.0)
    turned = _item(ImageOrientationPatient=[float(v) for v in orientation])
    dataset.SharedFunctionalGroupsSequence = [
        _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[turned])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame_groups(index, position, {keyword: values[index] for keyword, values in own.items()})
        for index, position in enumerate(positions)
    ]
    return dataset


def _frame_groups(index: int, position: Sequence[float], values: Mapping[str, Any]) -> Dataset:
    groups = {
        "PlanePositionSequence": _item(ImagePositionPatient=[round(float(v), 6) for v in position]),
        "FrameContentSequence": _item(
            DimensionIndexValues=[1, index + 1], StackID="1", InStackPositionNumber=index + 1
        ),
    }
    homes = {
        "EffectiveEchoTime": "MREchoSequence",
        "DiffusionBValue": "MRDiffusionSequence",
        "TemporalPositionIndex": "FrameContentSequence",
        "FrameAcquisitionNumber": "FrameContentSequence",
        "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
        "RescaleSlope": "PixelValueTransformationSequence",
        "RescaleIntercept": "PixelValueTransformationSequence",
        "FrameType": "MRImageFrameTypeSequence",
        "ComplexImageComponent": "MRImageFrameTypeSequence",
    }
    for keyword, value in values.items():
        setattr(groups.setdefault(homes[keyword], Dataset()), keyword, value)
    if transformation := groups.get("PixelValueTransformationSequence"):
        transformation.RescaleType = "US"
    return _item(**{keyword: [item] for keyword, item in groups.items()})


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def build_mosaic(
    tiles: np.ndarray,
    first: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    gap: float = 2.5,
    downwards: bool = False,
    **elements: Any,
) -> Dataset:
    """Return a Siemens mosaic of tiles (N, h, w), of which the first lies at `first` (LPS mm).

    The tiles follow one another along the normal of `orientation`, or against it where `downwards`.
    """
    count, rows, columns = tiles.shape
    grid = math.ceil(math.sqrt(count))
    sheet = np.zeros((grid * rows, grid * columns), dtype=tiles.dtype)
    for index, tile in enumerate(tiles):
        top, left = index // grid * rows, index % grid * columns
        sheet[top : top + rows, left : left + columns] = tile
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column) * (-1 if downwards else 1)
    spacing = elements.setdefault("PixelSpacing", [0.5, 0.25])
    # The header's position is that of a plane as large as the whole sheet, with the centre of a tile.
    position = np.array(first, float) - row * spacing[1] * columns * (grid - 1) / 2
    position = position - column * spacing[0] * rows * (grid - 1) / 2
    dataset = build_dataset(
        sheet,
        MRImageStorage,
        **{
            "BitsStored": 12,
            "Manufacturer": "SIEMENS",
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
            "ImageOrientationPatient": [float(v) for v in orientation],
            "ImagePositionPatient": [round(float(v), 6) for v in position],
            "SpacingBetweenSlices": gap,
            "SliceThickness": gap,
            **elements,
        },
    )
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x10, "OB", csa_header(count, normal))
    return dataset


def build_grid(
    tiles: np.ndarray,
    first: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    gap: float = 2.5,
    downwards: bool = False,
    block: int = 0x10,
    **elements: Any,
) -> Dataset:
    """Return a United Imaging grid of tiles (N, h, w), each of which has an item with its position (LPS mm).

    As its maker lays it out: ceil(sqrt(N)) columns, and as many rows as are needed.
    """
    count, rows, columns = tiles.shape
    wide = math.ceil(math.sqrt(count))
    sheet = np.zeros((math.ceil(count / wide) * rows, wide * columns), dtype=tiles.dtype)
    for index, tile in enumerate(tiles):
        top, left = index // wide * rows, index % wide * columns
        sheet[top : top + rows, left : left + columns] = tile
    normal = np.cross(orientation[:3], orientation[3:]) * (-1 if downwards else 1)
    dataset = build_dataset(
        sheet,
        MRImageStorage,
        **{
            "BitsStored": 12,
            "Manufacturer": "UIH",
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "VFRAME"],
            "ImageOrientationPatient": [float(v) for v in orientation],
            "SpacingBetweenSlices": gap,
            "SliceThickness": gap,
            **elements,
        },
    )
    places = [np.array(first, float) + index * gap * normal for index in range(count)]
    items = [_item(ImagePositionPatient=[round(float(v), 6) for v in place]) for place in places]
    dataset.add_new((0x0065, block), "LO", "Image Private Header")
    dataset.add_new((0x0065, block << 8 | 0x50), "DS", str(count))
    dataset.add_new((0x0065, block << 8 | 0x51), "SQ", items)
    return dataset


def csa_header(count: int, normal: Sequence[float] | np.ndarray) -> bytes:
    """Write the three fields that say how a mosaic is laid out, in the CSA2 format of Siemens scanners."""
    fields = {
        "EchoLinePosition": ("IS", ["0"]),
        "NumberOfImagesInMosaic": ("US", [str(count)]),
        "SliceNormalVector": ("FD", [f"{value:.8f}" for value in normal]),
    }
    head = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(fields), 77)
    return head + b"".join(_csa_field(name, *field) for name, field in fields.items())


def _csa_field(name: str, vr: str, values: Sequence[str]) -> bytes:
    items = [value.encode() + b"\0" for value in values] + [b""] * (6 - len(values))
    field = struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(items), 77)
    for item in items:
        padding = b"\0" * (-len(item) % 4)
        field += struct.pack("<4i", len(item), len(item), 77, len(item)) + item + padding
    return field


def compress_with_jpeg(dataset: Dataset, quality: int = 90) -> Dataset:
    """Compress 8-bit grey or RGB with baseline JPEG, in place; without chroma where it is grey."""
    from PIL import Image as PillowImage

    stream = io.BytesIO()
    PillowImage.fromarray(dataset.pixel_array).save(stream, "JPEG", quality=quality)
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    return encapsulate_frames(dataset, stream.getvalue(), JPEGBaseline8Bit)


def compress_with_lossless_jpeg(dataset: Dataset) -> Dataset:
    """Compress grey with JPEG Lossless (process 14, selection value 1), in place; even sizes."""
    return _compress_with_gdcm(dataset, "JPEGLosslessProcess14_1", JPEGLosslessSV1)


def compress_with_extended_jpeg(dataset: Dataset) -> Dataset:
    """Compress 12-bit grey with JPEG Extended (process 4, with loss), in place."""
    return _compress_with_gdcm(dataset, "JPEGExtendedProcess2_4", JPEGExtended12Bit)


def _compress_with_gdcm(dataset: Dataset, name: str, syntax: UID) -> Dataset:
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain.dcm"), Path(folder, "packed.dcm")
        dataset.save_as(plain, enforce_file_format=True)
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        codec = gdcm.JPEGCodec()
        codec.SetLossless(syntax == JPEGLosslessSV1)
        change.SetUserCodec(codec)
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(packed))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        stream = get_frame(dcmread(packed).PixelData, 0, number_of_frames=1)
    return encapsulate_frames(dataset, stream, syntax)


def compress_with_htj2k(dataset: Dataset, syntax: UID = HTJ2KLossless) -> Dataset:
    """Compress grey or RGB with High-Throughput JPEG 2000, in place; with loss where the syntax allows it."""
    import imagecodecs

    pixels = dataset.pixel_array
    lossless = syntax != HTJ2K
    stream = imagecodecs.htj2k_encode(pixels, None if lossless else 0.001, reversible=lossless, tlm=True)
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "YBR_RCT" if lossless else "YBR_ICT"
    return encapsulate_frames(dataset, stream, syntax)


def encapsulate_frames(dataset: Dataset, stream: bytes, syntax: UID) -> Dataset:
    """Put a compressed frame, or whole encapsulated pixel data, into a dataset."""
    dataset.PixelData = stream if stream.startswith(b"\xfe\xff\x00\xe0") else encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def build_deflate_bomb(radiograph: bytes, mebibytes: int) -> bytes:
    """Deflate a DICOM file of explicit VR, and put zeros behind it, which take a thousandth of their size."""
    plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    start = 132 + 12 + int.from_bytes(radiograph[140:144], "little")
    growth = len(deflated) - len(plain)
    meta = radiograph[:start].replace(struct.pack("<H", len(plain)) + plain, struct.pack("<H", 22) + deflated)
    meta = meta[:140] + (start + growth - 144).to_bytes(4, "little") + meta[144:]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(radiograph[start:]) + packer.flush(zlib.Z_FULL_FLUSH)
    return meta + body + deflated_zeros(mebibytes) + packer.flush()


def deflated_zeros(mebibytes: int) -> bytes:
    """Return zeros as raw deflate, which may stand after a full flush and does not end the stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)) * mebibytes


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

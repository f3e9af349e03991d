"""Write phantom images as DICOM: fixed dates, UIDs from the study's name, the same bytes every time."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from .cohort import Study
from .radiograph import SPACING_MM
from .randomness import SEED, Array, generator

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "j2k": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
}
# Encoders are pinned: another one may compress the same pixels to other bytes.
ENCODERS = {"rle": "pylibjpeg", "j2k": "pylibjpeg", "jpegls": "pyjpegls"}

MR_UNITS = 320  # stored grey levels for a signal of 1
NOTICE = "Computer-made phantom, not a patient. CC0."


def write_radiograph(study: Study, image: Array, path: Path) -> None:
    """Write one radiograph; image (rows, columns) in 0..1 as displayed, whatever the file's polarity."""
    traits = study.traits
    north = traits["scanner"] == "north"
    sop_class = DigitalXRayImageStorageForPresentation if north else ComputedRadiographyImageStorage
    data = _instance(study, sop_class, 1)
    _describe_radiograph(data, study)
    inverse = traits["photometric"] == "MONOCHROME1"
    bits = int(traits["bits"])
    stored = np.rint((1 - image if inverse else image) * (2**bits - 1)).astype(np.uint16)
    _set_pixels(data, stored, bits, traits["photometric"])
    slope = 1.0
    if north:
        data.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    elif bits == 16:
        slope = 0.25
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", str(slope), "US"
    _set_window(data, stored * slope)
    _save(data, traits["syntax"], path)


def write_series(study: Study, volume: Array, affine: Array, folder: Path) -> None:
    """Write one file per slice; volume (slices, rows, columns), affine to RAS+ mm.

    Neither file names nor InstanceNumber follow the position of the slices.
    """
    folder.mkdir(parents=True)
    numbers = instance_numbers(study, len(volume))
    names = generator("file names", study.name).permutation(len(volume))
    for index, pixels in enumerate(volume):
        data = _instance(study, MRImageStorage, int(numbers[index]))
        _describe_mr(data)
        _set_geometry(data, affine, index)
        slope, intercept = _rescale(study, index)
        stored = np.clip(np.rint((pixels * MR_UNITS - intercept) / slope), 0, 4095).astype(np.uint16)
        _set_pixels(data, stored, 12, "MONOCHROME2")
        if study.traits["rescale"] != "absent":
            data.RescaleIntercept, data.RescaleSlope, data.RescaleType = str(intercept), str(slope), "US"
        _set_window(data, stored * slope + intercept)
        _save(data, study.traits["syntax"], folder / f"IM{names[index] + 1:04d}.dcm")


def instance_numbers(study: Study, slices: int) -> NDArray[np.int_]:
    """Return InstanceNumber by slice, bottom to top."""
    upwards = np.arange(1, slices + 1)
    match study.traits["order"]:
        case "reversed":
            return upwards[::-1]
        case "interleaved":  # odd slices were acquired first
            return np.argsort(np.concatenate([upwards[::2], upwards[1::2]])) + 1
        case _:
            return generator("instance numbers", study.name).permutation(upwards)


def _instance(study: Study, sop_class: UID, number: int) -> Dataset:
    """Return the patient, study, series and equipment modules of one instance."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, _uid(study, "instance", number)
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(study, "study"), _uid(study, "series")
    data.PatientName, data.PatientID = f"PHANTOM^{study.patient_id}", study.patient_id
    data.PatientSex, data.PatientAge, data.PatientBirthDate = study.sex, f"{study.age:03d}Y", ""
    data.PatientComments = NOTICE
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = f"{2000 + study.number}0101"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "120000"
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = str(study.number), "", ""
    data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = 1, number, 1
    data.Manufacturer, data.ManufacturerModelName = "medtl phantom", study.traits["scanner"].title()
    data.InstitutionName, data.StationName = "Nowhere", study.traits["scanner"].upper()
    data.DeviceSerialNumber, data.SoftwareVersions = "0", "1"
    return data


def _uid(study: Study, *what: str | int) -> UID:
    return generate_uid(entropy_srcs=["medtl phantom", str(SEED), study.name, *map(str, what)])


def _describe_radiograph(data: Dataset, study: Study) -> None:
    spacing = str(SPACING_MM[study.traits["scanner"]])
    data.Modality = "DX" if study.traits["scanner"] == "north" else "CR"
    data.StudyDescription, data.SeriesDescription = "Phantom chest", f"Chest {study.traits['view']}"
    data.BodyPartExamined, data.ViewPosition, data.PatientOrientation = (
        "CHEST",
        study.traits["view"],
        ["L", "F"],
    )
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.ImagerPixelSpacing = [spacing, spacing]
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"
    if data.Modality == "DX":
        data.PresentationIntentType, data.ImageLaterality = "FOR PRESENTATION", "U"
        data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = "LOG", -1
        data.DetectorType, data.KVP = "DIRECT", "120"
        data.AnatomicRegionSequence = [_code("43799004", "SCT", "Thorax")]
        data.AcquisitionContextSequence = []


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _describe_mr(data: Dataset) -> None:
    data.Modality, data.BodyPartExamined, data.PatientPosition = "MR", "HEAD", "HFS"
    data.StudyDescription, data.SeriesDescription = "Phantom head", "T1 axial"
    data.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "SE", "NONE", ""
    data.MRAcquisitionType, data.MagneticFieldStrength, data.EchoTrainLength = "2D", "1.5", 1
    data.RepetitionTime, data.EchoTime = "500", "10"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = f"{data.SeriesInstanceUID}.1"[:64], ""
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"


def _set_geometry(data: Dataset, affine: Array, index: int) -> None:
    """Set position and orientation; DICOM's axes are LPS (PS3.3 C.7.6.2.1.1), the affine's RAS+."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    thickness, row_mm, column_mm = np.linalg.norm(lps[:3, :3], axis=0)
    along_row, along_column = lps[:3, 2] / column_mm, lps[:3, 1] / row_mm
    data.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
    data.ImagePositionPatient = [_decimal(v) for v in lps[:3, 3] + index * lps[:3, 0]]
    data.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    data.SliceThickness = data.SpacingBetweenSlices = _decimal(thickness)


def _decimal(value: float) -> str:
    """Return a decimal string of at most 16 characters, never a negative zero."""
    return f"{round(float(value), 8) + 0.0:.10g}"


def _rescale(study: Study, index: int) -> tuple[float, float]:
    """Return slope and intercept of a slice; some scanners use another slope for each."""
    match study.traits["rescale"]:
        case "series":
            return 0.5, -8.0
        case "slice":
            return 0.5 + 0.03125 * index, 0.0
        case _:
            return 1.0, 0.0


def _set_pixels(data: Dataset, stored: NDArray[np.uint16], bits: int, photometric: str) -> None:
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.add_new("PixelData", "OW", stored.tobytes())


def _set_window(data: Dataset, values: Array) -> None:
    """Set the window from the 1st to the 99.5th percentile, in the units after the rescale."""
    low, high = np.percentile(values, [1, 99.5])
    data.WindowCenter, data.WindowWidth = str(round((low + high) / 2)), str(max(round(high - low), 1))


def _save(data: Dataset, syntax: str, path: Path) -> None:
    """Write a DICOM file; nothing in it comes from the clock, the machine or pydicom's version."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = generate_uid(entropy_srcs=["medtl phantom", "implementation"])
    data.file_meta.ImplementationVersionName = "MEDTL_PHANTOM"
    if syntax in ENCODERS:
        data.compress(SYNTAXES[syntax], encoding_plugin=ENCODERS[syntax], generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)

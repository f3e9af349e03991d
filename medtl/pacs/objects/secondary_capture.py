"""Turn a study's result into a Secondary Capture: the image under its heatmap, with a legend."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from medtl.pacs.objects.concepts import ood_text
from medtl.pacs.objects.result import RESEARCH_ONLY, StudyResult, add_laterality
from medtl.report.formatting import probability_text
from medtl.report.pictures import Overlay, overlay_of, shown_size

LONGEST_SIDE = 768  # px of the picture above the legend
FONT_SIZE, MARGIN = 17, 10
# Rows run to the left and columns to the back, as imaging/display.py orients a volume.
AXIAL_ORIENTATION = ["L", "P"]


def secondary_capture(result: StudyResult) -> SCImage:
    """Return the overlay with its legend burned in, as an image that refers to the images scored."""
    overlay = overlay_of(result.image, result.heatmap)
    header = result.headers()[0]
    capture = SCImage.from_ref_dataset(
        ref_dataset=header,
        pixel_array=_draw(overlay, _legend(result, overlay)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **result.identity("sc"),
    )
    capture.copy_patient_and_study_information(header)
    _describe(capture, header, result)
    return capture


def _legend(result: StudyResult, overlay: Overlay) -> list[str]:
    place = f", slice {overlay.slice} of {overlay.slices} from the feet" if overlay.slices > 1 else ""
    pairs = zip(result.task.classes, result.probabilities, strict=True)
    probabilities = [f"{name} {probability_text(probability)}" for name, probability in pairs]
    return [
        f"medtl {result.model.medtl}, {result.model.backbone}, model {result.model.sha256[:12]}",
        f"Predicted: {', '.join(result.predicted) or 'none of the findings'}",
        f"Probabilities: {', '.join(probabilities)}",
        *filter(None, [ood_text(result.ood)]),
        f"Colour: what raised the score for {result.target_class} ({result.method}){place}",
        RESEARCH_ONLY,
    ]


def _draw(overlay: Overlay, legend: Sequence[str]) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3): the picture with square pixels, and below it the legend."""
    width, height = shown_size(overlay.pixels.shape[:2], overlay.spacing_mm, LONGEST_SIDE)
    picture = Picture.fromarray(overlay.pixels).resize((width, height), Picture.Resampling.BICUBIC)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf"), FONT_SIZE)
    columns = int((LONGEST_SIDE - 2 * MARGIN) / font.getlength("0"))  # a fixed pitch: letters can be counted
    lines = [part for line in legend for part in textwrap.wrap(line, columns, break_on_hyphens=False)]
    step = round(FONT_SIZE * 1.4)
    sheet = Picture.new("RGB", (LONGEST_SIDE, height + 2 * MARGIN + step * len(lines)))
    sheet.paste(picture, ((LONGEST_SIDE - width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((MARGIN, height + MARGIN + number * step), line, font=font, fill="white")
    return np.asarray(sheet)


def _describe(capture: SCImage, header: Dataset, result: StudyResult) -> None:
    """Describe the picture and the images it was made from."""
    volume = result.image.affine is not None
    capture.ConversionType = "WSD"
    capture.BurnedInAnnotation = "YES"
    capture.PatientOrientation = AXIAL_ORIENTATION if volume else header.get("PatientOrientation")
    add_laterality(capture, header)
    capture.DerivationDescription = (
        f"Image under a heatmap ({result.method}) of what raised the model's score for "
        f"{result.target_class}; medtl {result.model.medtl}, {result.model.backbone}. {RESEARCH_ONLY}"
    )
    capture.SourceImageSequence = [_source_item(one.header, one.frames) for one in result.sources]
    capture.LossyImageCompression = header.get("LossyImageCompression") or "00"
    if capture.LossyImageCompression == "01":
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in header:
                capture[keyword] = header[keyword]


def _source_item(header: Dataset, frames: tuple[int, ...] | None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frames is not None:
        item.ReferencedFrameNumber = list(frames)
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    return item

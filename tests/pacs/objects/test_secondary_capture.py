"""The Secondary Capture: a picture that says what it is, in words and in its header."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medtl.pacs.objects.secondary_capture import LONGEST_SIDE, secondary_capture
from medtl.report.pictures import overlay_of
from tests.pacs.objects.conftest import KINDS, referenced, run_tool


@pytest.mark.parametrize("kind", KINDS)
def test_it_refers_to_the_images_judged(kind: str, make_result: Callable) -> None:
    result = make_result(kind)
    capture = secondary_capture(result)
    found = {
        (str(item.ReferencedSOPInstanceUID), _frames(item.get("ReferencedFrameNumber")))
        for item in capture.SourceImageSequence
    }
    assert found == referenced(result)
    assert all(
        item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322" for item in capture.SourceImageSequence
    )


def _frames(value: object) -> tuple[int, ...] | None:
    return None if value is None else tuple(np.atleast_1d(np.asarray(value, int)).tolist())


@pytest.mark.parametrize(("kind", "orientation"), [("radiograph", ["L", "F"]), ("series", ["L", "P"])])
def test_it_says_what_it_is(kind: str, orientation: list[str], make_result: Callable) -> None:
    capture = secondary_capture(make_result(kind))
    assert (capture.ConversionType, capture.BurnedInAnnotation) == ("WSD", "YES")
    assert capture.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "Grad-CAM" in capture.DerivationDescription and "lesion" in capture.DerivationDescription
    assert "Research use only" in capture.DerivationDescription
    assert list(capture.PatientOrientation) == orientation


def test_an_unknown_orientation_stays_unknown(make_result: Callable) -> None:
    assert not secondary_capture(make_result(PatientOrientation=None)).PatientOrientation


def test_loss_in_the_source_is_told(make_result: Callable) -> None:
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "8.5"}
    capture = secondary_capture(make_result(**lossy))
    assert (capture.LossyImageCompression, capture.LossyImageCompressionRatio) == ("01", 8.5)


def test_the_picture_has_true_proportions_above_the_words(make_result: Callable) -> None:
    result = make_result(PixelSpacing=[1.0, 0.5])  # 30 x 20 pixels of 30 x 10 mm
    pixels = secondary_capture(result).pixel_array
    picture, words = pixels[:LONGEST_SIDE], pixels[LONGEST_SIDE:]
    lit = np.flatnonzero(picture.any(axis=(0, 2)))
    assert np.ptp(lit) + 1 == pytest.approx(LONGEST_SIDE / 3, abs=3)
    assert words.max() == 255 and (words == 0).mean() > 0.5


def test_the_words_change_with_what_they_say_and_long_names_fit(make_result: Callable) -> None:
    short, long = (secondary_capture(make_result(classes=("normal", name))) for name in ("lesion", "x" * 300))
    assert long.Rows > short.Rows and long.Columns == short.Columns == LONGEST_SIDE


def test_of_a_volume_the_slice_is_shown_where_the_map_is_largest(make_result: Callable) -> None:
    result = make_result("series")
    overlay = overlay_of(result.image, result.heatmap)
    assert 1 <= overlay.slice <= overlay.slices and overlay.slices > 1
    assert np.ptp(overlay.pixels.astype(int), axis=2).max() > 30  # colour


def test_dcmtk_renders_it_as_it_is(make_result: Callable, tmp_path: Path) -> None:
    from PIL import Image

    capture = secondary_capture(make_result("mosaic"))
    capture.save_as(tmp_path / "sc.dcm", enforce_file_format=True)
    run_tool("dcm2pnm", "--write-raw-pnm", tmp_path / "sc.dcm", tmp_path / "sc.ppm")
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "sc.ppm")), dcmread(tmp_path / "sc.dcm").pixel_array
    )

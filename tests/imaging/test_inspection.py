"""What is in a folder: inspections and groups; nothing in them says who the patients are."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydicom.uid import RLELossless

from medtl.imaging.dicom.terms import NOT_SHOWN
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.inspection import (
    BURNED_IN,
    SAMPLED_VALUES,
    Inspection,
    count_notes,
    group_inspections,
    inspect_header,
    inspect_image,
    measure_intensity,
    size_text,
)
from medtl.imaging.reader import read_series, scan
from tests.imaging.conftest import pattern


def make_image(pixels: np.ndarray, **facts: object) -> Image:
    """Return an image (1, H, W)."""
    return Image(pixels.astype(np.float32)[None], None, None, ImageFacts("a", "raster", **facts))  # type: ignore[arg-type]


def inspect_all(folder: Path) -> list[Inspection]:
    """Inspect every series of a folder with its pixels."""
    return [inspect_image(series, read_series(series)) for series in scan(folder).series]


def inspect_one(path: Path) -> Inspection:
    """Inspect the one series of a source with its pixels."""
    (inspection,) = inspect_all(path)
    return inspection


def test_a_radiograph_is_described(make_radiograph: Callable[..., Path]) -> None:
    path = make_radiograph(
        syntax=RLELossless, BodyPartExamined="chest", ViewPosition="PA", WindowCenter=600, WindowWidth=1600
    )
    found = inspect_one(path)
    assert (found.kind, found.modality, found.body_part, found.view) == ("image", "CR", "CHEST", "PA")
    assert found.transfer_syntax == "RLE Lossless" and found.decoder.startswith("pylibjpeg-rle")
    assert (found.matrix, found.spacing_mm, found.bits) == ((12, 10), (0.5, 0.25), 12)
    assert found.windowed and found.photometric == "MONOCHROME2" and found.missing == ()
    values = read_series(scan(path).series[0]).pixels
    assert found.intensity is not None
    assert (found.intensity.lowest, found.intensity.highest) == (values.min(), values.max())


def test_the_header_of_a_dicom_file_gives_what_its_pixels_give(make_radiograph: Callable[..., Path]) -> None:
    path = make_radiograph(
        BurnedInAnnotation="YES",
        LossyImageCompression="01",
        ImageType=["DERIVED", "SECONDARY"],
        PhotometricInterpretation="MONOCHROME1",
    )
    header, whole = inspect_header(scan(path).series[0]), inspect_one(path)
    assert set(header.notes) == set(whole.notes) and len(header.notes) == 3
    assert BURNED_IN in header.notes
    unread = {"decoder", "intensity", "notes"}
    known = {name: value for name, value in asdict(header).items() if name not in unread}
    assert known == {name: value for name, value in asdict(whole).items() if name not in unread}
    assert header.intensity is None and not header.decoder


def test_headers_give_the_geometry_of_a_series(
    make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    make_series(instances=4, gap=2.5)
    header, whole = inspect_header(scan(tmp_path).series[0]), inspect_one(tmp_path)
    assert header.kind == whole.kind == "volume"
    assert header.matrix == whole.matrix == (4, 6, 5)
    assert header.spacing_mm == whole.spacing_mm == pytest.approx((2.5, 0.5, 0.25))


def test_headers_of_an_archive_say_neither_image_nor_volume(
    make_archive: Callable[..., Path],
) -> None:
    path = make_archive()
    assert {inspect_header(series).kind for series in scan(path).series} == {"item"}
    assert {one.kind for one in inspect_all(path)} == {"image"}


def test_elements_that_are_absent_are_named(make_radiograph: Callable[..., Path]) -> None:
    path = make_radiograph(PatientID=None, PixelSpacing=None, StudyInstanceUID=None, BodyPartExamined="HAND")
    assert inspect_one(path).missing == ("PatientID", "StudyInstanceUID", "PixelSpacing", "ViewPosition")


def test_slices_are_not_asked_for_a_view(make_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    make_series(BodyPartExamined="HEAD")
    assert inspect_one(tmp_path).missing == ()


@pytest.mark.parametrize(
    "text", ["Kim, born in 1977", "KIM CANARY", "19771231", "\x1b[31mRED", "<img src=x>", "A" * 17]
)
def test_free_text_in_a_code_is_not_shown(text: str, make_radiograph: Callable[..., Path]) -> None:
    found = inspect_one(make_radiograph(BodyPartExamined=text, ViewPosition=text))
    assert found.body_part == found.view == NOT_SHOWN


def test_nothing_that_identifies_is_kept(make_radiograph: Callable[..., Path], tmp_path: Path) -> None:
    make_radiograph(StudyDescription="Canary study", StudyDate="20010911")
    text = repr(inspect_all(tmp_path)) + repr(group_inspections(inspect_all(tmp_path)))
    assert "canary" not in text.lower() and "2001" not in text and "1.2.826" not in text
    assert str(tmp_path) not in text


def test_padding_counts_for_no_intensity() -> None:
    pixels = pattern(20, 20, top=100)
    pixels[0] = 60000
    image = make_image(pixels, padding=(60000.0, 60000.0))
    found = measure_intensity(image)
    assert found is not None and found.highest <= 100
    assert measure_intensity(make_image(pixels[:1], padding=(0.0, 60000.0))) is None


def test_percentiles_of_a_large_image_come_from_a_sample() -> None:
    values = np.arange(3 * SAMPLED_VALUES, dtype=np.float32)[None]
    found = measure_intensity(make_image(values))
    assert found is not None
    assert (found.lowest, found.highest) == (0, values.max())
    for value, share in ((found.percentile_1, 0.01), (found.median, 0.5), (found.percentile_99, 0.99)):
        assert value / values.max() == pytest.approx(share, abs=1e-4)


def test_the_largest_floats_do_not_overflow() -> None:
    most = np.finfo(np.float32).max
    found = measure_intensity(make_image(np.array([[-most, most, -most, most]])))
    assert found is not None and np.isfinite(found).all()


def test_groups_part_modalities_formats_and_kinds(
    make_radiograph: Callable[..., Path],
    make_series: Callable[..., list[Path]],
    make_nifti: Callable[..., Path],
    tmp_path: Path,
) -> None:
    make_radiograph(name="x/a.dcm")
    make_radiograph(name="x/b.dcm", PatientID=None)
    make_series(folder="mr")
    make_nifti()
    groups = {(one.modality, one.format, one.kind): one for one in group_inspections(inspect_all(tmp_path))}
    assert list(groups) == [("", "nifti", "volume"), ("CR", "dicom", "image"), ("MR", "dicom", "volume")]
    radiographs = groups["CR", "dicom", "image"]
    assert (radiographs.count, radiographs.patients, radiographs.unidentified) == (2, 1, 1)
    assert (radiographs.studies, radiographs.series) == (1, 1)
    assert radiographs.missing["PatientID"] == 1
    assert groups["", "nifti", "volume"].patients == 0 == groups["", "nifti", "volume"].studies
    assert groups["MR", "dicom", "volume"].matrices.counts == {"3 x 6 x 5": 1}


def test_sizes_are_counted_with_their_range(tmp_path: Path) -> None:
    for number, (rows, columns) in enumerate([(10, 20), (10, 20), (30, 8)]):
        PillowImage.fromarray(pattern(rows, columns, dtype="uint8", top=255)).save(tmp_path / f"{number}.png")
    (group,) = group_inspections(inspect_all(tmp_path))
    assert group.matrices.counts == {"10 x 20": 2, "30 x 8": 1}
    assert (group.matrices.lowest, group.matrices.highest) == ((10, 8), (30, 20))
    assert group.unknown_spacing == 3 and group.spacings_mm.counts == {}
    assert group.extremes is not None and group.typical is not None


def test_of_no_inspections_there_are_no_groups() -> None:
    assert group_inspections([]) == ()


@pytest.mark.parametrize(
    ("size", "text"),
    [((22, 320, 280), "22 x 320 x 280"), ((6.5, 0.6875), "6.5 x 0.6875"), ((1 / 3,), "0.3333"), ((), "")],
)
def test_sizes_are_written_short(size: tuple[float, ...], text: str) -> None:
    assert size_text(size) == text


def test_parts_of_one_series_are_counted_together(make_series: Callable) -> None:
    (series,) = scan(make_series()[0].parent).series
    end = "of its series, separated by TriggerTime"
    parts = [inspect_header(replace(series, notes=(f"part {part} of 9 {end}",))) for part in range(1, 10)]
    assert count_notes(parts) == {f"one of 9 parts {end}": 9}

"""The committed sample data: what the generator writes, honest about its labels, and true to its README."""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import binary_dilation
from scipy.stats import chi2_contingency, mannwhitneyu

from medtl.errors import ReadError
from medtl.imaging.reader import read_images
from sample_data.brain import draw_brain
from sample_data.cohort import COHORTS, LABELS, TRAITS, Kind, Study, make_cohort
from sample_data.files import reorient
from sample_data.generate import COLUMNS, TRUNCATED, WRITTEN, main, write_sample_data
from sample_data.radiograph import draw_radiograph

HOME = Path(__file__).parents[1] / "sample_data"
LABELLED: tuple[Kind, ...] = ("xray", "mri")
SIZE_LIMIT = 11_000_000


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for name in WRITTEN for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def studies_of(kind: Kind) -> list[Study]:
    return make_cohort(next(c for c in COHORTS if c.kind == kind and c.name == "labelled"))


def lesions_of(kind: Kind) -> list[str]:
    return [study.name for study in studies_of(kind) if study.has_lesion]


def read_slices(folder: Path) -> list[pydicom.Dataset]:
    """Return the slices of a series from bottom to top, whatever their names and numbers."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(
        slices, key=lambda data: float(normal_of(data) @ np.array(data.ImagePositionPatient, float))
    )


def load_nifti(path: Path) -> Any:
    return nib.load(path)  # nibabel's own annotation promises less than NIfTI images have


def normal_of(data: pydicom.Dataset) -> NDArray[np.float64]:
    orientation = np.array(data.ImageOrientationPatient, float)
    return np.cross(orientation[:3], orientation[3:])


def series_affine(slices: list[pydicom.Dataset]) -> NDArray[np.float64]:
    """Return index (slice, row, column) to RAS+ mm (PS3.3 C.7.6.2.1.1, then LPS to RAS)."""
    first, last = slices[0], slices[-1]
    origin = np.array(first.ImagePositionPatient, float)
    orientation = np.array(first.ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = (np.array(last.ImagePositionPatient, float) - origin) / (len(slices) - 1)
    affine[:3, 1] = orientation[3:] * float(first.PixelSpacing[0])
    affine[:3, 2] = orientation[:3] * float(first.PixelSpacing[1])
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def values_of(data: pydicom.Dataset) -> NDArray[np.float64]:
    """Return pixels after the rescale, larger being brighter."""
    stored = data.pixel_array.astype(float)
    if data.PhotometricInterpretation == "MONOCHROME1":
        stored = 2**data.BitsStored - 1 - stored
    return stored * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))


def read_labelled(kind: Kind, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return an image and its mask on one grid."""
    images, masks = HOME / kind / "images", HOME / kind / "masks"
    if kind == "xray":
        mask = np.asarray(PillowImage.open(masks / f"{name}.png"))
        return values_of(pydicom.dcmread(images / f"{name}.dcm")), mask > 0
    mask = np.asarray(load_nifti(masks / f"{name}.nii.gz").dataobj)
    if (images / name).is_dir():
        return np.stack([values_of(data) for data in read_slices(images / name)]), mask > 0
    return np.asarray(load_nifti(images / f"{name}.nii.gz").dataobj).astype(float), mask > 0


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sample_data")
    write_sample_data(folder)
    return files_below(folder)


def content_of(name: str, raw: bytes) -> bytes:
    """Return the bytes of a file, free of what another version of a compressor would write."""
    if name.endswith(".dcm"):
        return re.sub(rb"Created by OpenJPEG version [0-9.]+", b"", raw)
    if "zlib-ng" not in zlib.ZLIB_RUNTIME_VERSION:
        return raw
    if name.endswith(".gz"):
        return gzip.decompress(raw)
    return PillowImage.open(io.BytesIO(raw)).tobytes() if name.endswith(".png") else raw


def test_generating_again_gives_the_committed_bytes(regenerated: dict[str, bytes]) -> None:
    committed = files_below(HOME)
    assert sorted(regenerated) == sorted(committed)
    changed = [n for n in committed if content_of(n, committed[n]) != content_of(n, regenerated[n])]
    assert changed == []


def test_a_folder_that_holds_other_images_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "mri" / "precious.dcm"
    archive.parent.mkdir()
    archive.write_bytes(b"keep")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert archive.read_bytes() == b"keep"
    assert "give a folder without it" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["--out", str(tmp_path / "file")])
    assert end.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_order_of_drawing_does_not_matter() -> None:
    study = studies_of("xray")[5]
    draw_radiograph(studies_of("xray")[0])
    first, _ = draw_radiograph(study)
    second, _ = draw_radiograph(study)
    np.testing.assert_array_equal(first, second)


def test_all_files_fit_the_budget() -> None:
    assert sum(map(len, files_below(HOME).values())) <= SIZE_LIMIT


@pytest.mark.parametrize("kind", LABELLED)
def test_every_labelled_path_exists_and_every_image_is_labelled(kind: Kind) -> None:
    rows = rows_of(HOME / kind / "labels.csv")
    assert tuple(rows[0]) == COLUMNS
    assert {row["path"] for row in rows} == {
        f"images/{path.name}" for path in (HOME / kind / "images").iterdir()
    }
    assert {row["label"] for row in rows} == set(LABELS[kind])
    assert len({row["path"] for row in rows}) == len(rows)


def test_answers_cover_the_unlabelled_studies_but_the_truncated_one() -> None:
    home = HOME / "unlabelled"
    found = {f"{kind}/{path.name}" for kind in LABELLED for path in (home / kind).iterdir()}
    answers = rows_of(home / "answers.csv")
    assert found - {row["path"] for row in answers} == {f"xray/{TRUNCATED}"}
    assert Counter((row["path"].split("/")[0], row["label"]) for row in answers)[("mri", "lesion")] == 3


def test_unlabelled_patients_are_not_among_the_labelled() -> None:
    labelled = {row["patient_id"] for kind in LABELLED for row in rows_of(HOME / kind / "labels.csv")}
    assert labelled.isdisjoint(row["patient_id"] for row in rows_of(HOME / "unlabelled" / "answers.csv"))


def test_the_truncated_radiograph_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTL_SALT", "test")
    path = HOME / "unlabelled" / "xray" / TRUNCATED
    assert path.read_bytes()[128:132] == b"DICM"
    with pytest.raises(ReadError, match=TRUNCATED):
        read_images(path)


@pytest.mark.parametrize("kind", LABELLED)
def test_medtl_reads_every_study_on_the_grid_of_its_mask(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTL_SALT", "test")
    for study, row in zip(studies_of(kind), rows_of(HOME / kind / "labels.csv")):
        (image,) = read_images(HOME / kind / row["path"])
        if image.affine is not None and study.has_lesion:
            mask = load_nifti(HOME / kind / "masks" / f"{study.name}.nii.gz")
            assert mask.shape == image.pixels.shape[1:]
            np.testing.assert_allclose(mask.affine, image.affine, atol=1e-3)


@pytest.mark.parametrize("kind", LABELLED)
def test_some_patients_come_twice_and_not_always_with_the_same_label(kind: Kind) -> None:
    by_patient: dict[str, list[str]] = {}
    for row in rows_of(HOME / kind / "labels.csv"):
        by_patient.setdefault(row["patient_id"], []).append(row["label"])
    twice = [labels for labels in by_patient.values() if len(labels) == 2]
    assert len(twice) >= 10
    assert any(len(set(labels)) == 2 for labels in twice)


def traits_of(kind: Kind) -> list[tuple[Kind, str]]:
    return [(kind, trait) for trait in (*TRAITS[kind], "sex", "number")]


def option_of(study: Study, trait: str) -> str:
    if trait == "syntax" and study.traits.get("container") == "nifti":
        return "nifti"
    return study.traits[trait] if trait in study.traits else str(getattr(study, trait))


@pytest.mark.parametrize(("kind", "trait"), traits_of("xray") + traits_of("mri"))
def test_no_trait_tells_the_label(kind: Kind, trait: str) -> None:
    counts = Counter((option_of(study, trait), study.has_lesion) for study in studies_of(kind))
    options = sorted({option for option, _ in counts})
    table = [[counts[(option, answer)] for answer in (False, True)] for option in options]
    assert chi2_contingency(table).pvalue > 0.1, table


@pytest.mark.parametrize("kind", LABELLED)
def test_age_does_not_tell_the_label(kind: Kind) -> None:
    ages: dict[bool, list[int]] = {False: [], True: []}
    for study in studies_of(kind):
        ages[study.has_lesion].append(study.age)
    assert mannwhitneyu(ages[False], ages[True]).pvalue > 0.1


@pytest.mark.parametrize("kind", LABELLED)
def test_images_with_and_without_lesion_have_masks_accordingly(kind: Kind) -> None:
    masks = {path.name.split(".")[0] for path in (HOME / kind / "masks").iterdir()}
    assert masks == set(lesions_of(kind))


@pytest.mark.parametrize("kind", LABELLED)
def test_every_mask_has_the_matrix_of_its_image_and_a_sensible_size(kind: Kind) -> None:
    for name in lesions_of(kind):
        image, mask = read_labelled(kind, name)
        assert image.shape == mask.shape
        assert 12 <= mask.sum() < 0.1 * mask.size, name


def draw(study: Study) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """Draw a study on the grid of its drawing, before it is turned to the axes of a file."""
    return draw_radiograph(study) if study.kind == "xray" else draw_brain(study)[:2]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in LABELLED for name in lesions_of(kind)[::4]]
)
def test_a_mask_is_where_the_same_body_without_a_lesion_differs(kind: Kind, name: str) -> None:
    study = next(study for study in studies_of(kind) if study.name == name)
    with_lesion, mask = draw(study)
    without, none = draw(replace(study, label="normal"))
    assert mask is not None and none is None
    assert mask.sum() == read_labelled(kind, name)[1].sum()
    change = np.abs(with_lesion - without)
    far = ~binary_dilation(mask, iterations=12 if kind == "xray" else 3)
    assert change[mask].mean() > 0.04
    assert change[mask].mean() > 8 * change[far].mean()


@pytest.mark.parametrize("name", lesions_of("mri"))
def test_a_volume_mask_lies_on_the_grid_of_its_volume(name: str) -> None:
    mask = load_nifti(HOME / "mri" / "masks" / f"{name}.nii.gz")
    volume = HOME / "mri" / "images" / name
    expected = (
        series_affine(read_slices(volume))
        if volume.is_dir()
        else load_nifti(volume.with_name(f"{name}.nii.gz")).affine
    )
    np.testing.assert_allclose(mask.affine, expected, atol=1e-3)


def test_the_affine_of_a_series_is_the_one_that_highdicom_finds() -> None:
    folder = next(path for path in sorted((HOME / "mri" / "images").iterdir()) if path.is_dir())
    slices = read_slices(folder)
    volume = highdicom.get_volume_from_series(slices)
    theirs = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    if theirs[2, 0] < 0:  # slices counted from the top: count them from the bottom
        theirs = theirs @ np.array([[-1, 0, 0, len(slices) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(series_affine(slices), theirs, atol=1e-3)


def test_positions_of_slices_follow_neither_names_nor_instance_numbers() -> None:
    for folder in (path for path in (HOME / "mri" / "images").iterdir() if path.is_dir()):
        by_name = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]
        heights = [float(data.ImagePositionPatient[2]) for data in by_name]
        numbers = [int(data.InstanceNumber) for data in by_name]
        assert heights != sorted(heights)
        assert [h for _, h in sorted(zip(numbers, heights))] != sorted(heights)
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_nifti_volumes_have_one_geometry_in_both_orientations() -> None:
    volumes = [load_nifti(path) for path in (HOME / "mri" / "images").glob("*.nii.gz")]
    for volume in volumes:
        np.testing.assert_allclose(volume.get_qform(), volume.get_sform(), atol=1e-4)
        assert volume.header["qform_code"] == volume.header["sform_code"] == 1
        assert volume.get_data_dtype() == np.int16
    assert {"".join(nib.aff2axcodes(volume.affine)) for volume in volumes} == {"RAS", "LAS"}


@pytest.mark.parametrize("orientation", ["RAS", "LAS"])
def test_a_turned_volume_keeps_every_voxel_in_its_place(orientation: str) -> None:
    volume = np.random.default_rng(0).random((3, 4, 5))
    affine = np.array([[0, 0, -2.0, 9], [0, -3.0, 0.1, 8], [5.0, 0.2, 0, 7], [0, 0, 0, 1]])
    turned, grid = reorient(volume, affine, orientation)
    place = np.linalg.inv(grid) @ affine @ [2, 1, 3, 1]
    assert turned[tuple(np.rint(place[:3]).astype(int))] == volume[2, 1, 3]
    assert "".join(nib.aff2axcodes(grid)) == orientation


def test_inverse_radiographs_are_stored_inverse() -> None:
    """The air in the corners is dark when displayed, whatever the polarity of the file."""
    stored_corner = {"MONOCHROME1": [], "MONOCHROME2": []}  # type: dict[str, list[float]]
    for path in (HOME / "xray" / "images").iterdir():
        data = pydicom.dcmread(path)
        share = float(np.median(data.pixel_array[:6, :6])) / (2**data.BitsStored - 1)
        stored_corner[data.PhotometricInterpretation].append(share)
    assert min(stored_corner["MONOCHROME1"]) > 0.8
    assert max(stored_corner["MONOCHROME2"]) < 0.2


def test_every_instance_says_that_it_is_a_phantom() -> None:
    paths = [path for path in HOME.rglob("*.dcm") if path.name != TRUNCATED]
    uids = set()
    for path in paths:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        assert str(data.PatientName) == f"PHANTOM^{data.PatientID}"
        uids.add(data.SOPInstanceUID)
    assert len(uids) == len(paths)


def readme_counts() -> Iterator[tuple[str, int]]:
    """Yield the rows of the README's tables whose last cell is a number."""
    for line in (HOME / "README.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| (.+?) \| (\d+) \|", line):
            yield match[1], int(match[2])


def true_counts() -> dict[str, int]:
    xray = [pydicom.dcmread(path, stop_before_pixels=True) for path in (HOME / "xray" / "images").iterdir()]
    volumes = list((HOME / "mri" / "images").iterdir())
    series = [pydicom.dcmread(next(p.iterdir()), stop_before_pixels=True) for p in volumes if p.is_dir()]
    counts: dict[str, int] = {}
    for kind in LABELLED:
        rows = rows_of(HOME / kind / "labels.csv")
        counts[f"{kind}: studies"] = len(rows)
        counts[f"{kind}: patients"] = len({row["patient_id"] for row in rows})
        counts |= {f"{kind}: {value}": n for value, n in Counter(row["label"] for row in rows).items()}
        counts |= {
            f"{kind}: scanner {value}": n for value, n in Counter(row["scanner"] for row in rows).items()
        }
    for kind, instances in (("xray", xray), ("mri", series)):
        names = Counter(data.file_meta.TransferSyntaxUID.name for data in instances)
        counts |= {f"{kind}: {name}": n for name, n in names.items()}
    counts |= {f"xray: {value}": n for value, n in Counter(d.PhotometricInterpretation for d in xray).items()}
    counts |= {f"xray: {value} bits": n for value, n in Counter(d.BitsStored for d in xray).items()}
    counts["mri: DICOM series"] = len(series)
    counts["mri: NIfTI volumes"] = len(volumes) - len(series)
    counts["unlabelled xray: studies"] = len(list((HOME / "unlabelled" / "xray").iterdir())) - 1
    counts["unlabelled mri: studies"] = len(list((HOME / "unlabelled" / "mri").iterdir()))
    return counts


def test_the_readme_counts_what_is_there() -> None:
    assert dict(readme_counts()) == true_counts()

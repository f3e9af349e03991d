"""Real images, where they are at hand: polarity, spacing, splits, tables, masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.data.manifest import load_manifest
from medtl.data.splits import SplitConfig, check_no_leak, split_samples
from medtl.data.task import TaskConfig
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series

pytestmark = pytest.mark.shared


def read_one(path: Path) -> Image:
    """Read a source that holds one image."""
    (image,) = read_images(path)
    return image


def test_a_monochrome1_twin_is_the_exact_negative(shared_data: Path) -> None:
    """The two files differ in their photometric tag alone, so one shows the other's negative."""
    files = sorted((shared_data / "chest-xray-dicom").glob("*.dcm"))
    images = {image.facts.photometric: image for image in map(read_one, files)}
    plain, twin = images["MONOCHROME2"].pixels, images["MONOCHROME1"].pixels
    assert plain.shape == twin.shape and plain.std() > 10
    sums = plain + twin
    assert sums.min() == sums.max()


def test_radiographs_as_png_are_read_whole(shared_data: Path) -> None:
    for path in sorted((shared_data / "chest-xray-dicom").glob("*.png")):
        image = read_one(path)
        with PillowImage.open(path) as stored:
            assert (image.pixels[0] == np.asarray(stored.convert("L"))).all()
        assert image.affine is None and image.pixels.std() > 10


@pytest.mark.parametrize("name", ["11-T1post-18670", "36468-FLAIRreg-58706"])
def test_mr_series_have_their_spacing(name: str, shared_data: Path) -> None:
    image = read_one(shared_data / "brain-mri-dicom" / name)
    assert image.pixels.shape == (1, 22, 320, 280)
    assert image.spacing_mm is not None and image.affine is not None
    assert image.spacing_mm[1:] == pytest.approx((0.6875, 0.6875))
    steps = np.linalg.norm(image.affine[:3, :3], axis=0)
    assert steps == pytest.approx(image.spacing_mm, abs=1e-3)
    assert image.spacing_mm[0] == pytest.approx(
        _slice_distance(shared_data / "brain-mri-dicom" / name), abs=1e-3
    )


def _slice_distance(folder: Path) -> float:
    """Return the median distance of neighbouring slices from their positions alone."""
    from pydicom import dcmread

    headers = [dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    normal = np.cross(*np.reshape([float(v) for v in headers[0].ImageOrientationPatient], (2, 3)))
    along = sorted(float(np.dot([float(v) for v in h.ImagePositionPatient], normal)) for h in headers)
    return float(np.median(np.diff(along)))


def test_two_series_of_one_study_share_a_patient_and_a_study(shared_data: Path) -> None:
    first, second = read_images(shared_data / "brain-mri-dicom")
    assert first.facts.study_key == second.facts.study_key != ""
    assert first.facts.patient_key == second.facts.patient_key != ""
    assert first.facts.series_key != second.facts.series_key


def test_pneumoniamnist_brings_its_own_split(shared_data: Path) -> None:
    archive = shared_data / "chest-xray-pneumonia/pneumoniamnist.npz"
    manifest = load_manifest(archive, None, TaskConfig(classes=("normal", "pneumonia")))
    parts = [sample.split for sample in manifest.samples]
    assert (parts.count("train"), parts.count("val")) == (4708, 524)
    assert manifest.task.kind == "binary" and manifest.task.classes == ("normal", "pneumonia")
    train = [sample.target for sample in manifest.samples if sample.split == "train"]
    assert (train.count(0), train.count(1)) == (1214, 3494)
    assert split_samples(manifest.samples, manifest.task, SplitConfig()) == manifest.samples
    image = read_series(manifest.samples[0].series)
    with np.load(archive) as arrays:
        item = manifest.samples[0].series.item or ""
        part, row = item.split("/")
        assert (image.pixels[0] == arrays[f"{part}_images"][int(row)]).all()


def test_the_tumour_table_is_read_whole(shared_data: Path) -> None:
    manifest = load_manifest(shared_data / "brain-mri-tumour", None, TaskConfig())
    assert len(manifest.samples) == 2870 and manifest.refusals == ()
    assert manifest.task.kind == "multiclass"
    assert set(manifest.task.classes) == {"glioma", "meningioma", "pituitary", "none"}
    assert manifest.task.classes[0] == "none"
    assert any("no patient ids" in note for note in manifest.notes)


def test_hippocampus_volumes_and_masks_share_their_grids(shared_data: Path) -> None:
    folder = shared_data / "hippocampus-mri"
    manifest = load_manifest(folder, None, TaskConfig())
    assert len(manifest.samples) == 130 and set(manifest.task.classes) == {"small", "large"}
    samples = split_samples(manifest.samples, manifest.task, SplitConfig())
    check_no_leak(samples)
    for sample in samples[:: len(samples) // 3][:3]:
        path = sample.series.path
        image, mask = read_series(sample.series), read_one(folder / "masks" / path.name)
        assert image.pixels.shape == mask.pixels.shape
        assert np.allclose(image.affine, mask.affine, atol=1e-3)
        voxel_mm3 = abs(np.linalg.det(mask.affine[:3, :3]))
        assert mask.pixels.astype(bool).sum() * voxel_mm3 == pytest.approx(
            float(sample.attributes["hippocampus_mm3"]), rel=0.01
        )

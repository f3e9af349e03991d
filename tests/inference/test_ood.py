"""The OOD check: Mahalanobis checked by hand, verdicts in order, nothing of a patient kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.reader import scan
from medtl.imaging.series import Series
from medtl.inference.ood import (
    FAR,
    decide_ood,
    distances,
    find_mismatch,
    fit_distribution,
    fit_ood,
    to_unit_length,
)
from medtl.training.checkpoint import OodLimits
from tests.cli.jobs import write_radiograph, write_volume

FACTS = ImageFacts("x", "dicom", modality="CR", body_part="CHEST")
LIMITS = OodLimits(
    threshold=2.0,
    quantile=0.99,
    samples=9,
    modalities=("CR", "DX"),
    body_parts=("CHEST",),
    extents_mm=((300.0, 400.0), (300.0, 400.0)),
)


def make_features(samples: int, dimensions: int = 20, seed: int = 0) -> np.ndarray:
    """Return features around one direction, with more spread along some axes than along others."""
    generator = np.random.default_rng(seed)
    spread = np.linspace(1.0, 0.05, dimensions)
    return 3.0 + generator.normal(size=(samples, dimensions)) * spread


def make_image(side_mm: float = 350.0, facts: ImageFacts = FACTS) -> Image:
    return Image(np.zeros((1, 50, 50), np.float32), None, (side_mm / 50,) * 2, facts)


def test_distances_are_mahalanobis_with_the_covariance_of_ledoit_and_wolf() -> None:
    """With an axis for each dimension nothing is cut off, and scikit-learn's estimator gives the numbers."""
    training, others = make_features(200), make_features(50, seed=1)
    unit = to_unit_length(training)
    covariance = LedoitWolf().fit(unit).covariance_
    centred = to_unit_length(others) - unit.mean(axis=0)
    expected = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred)
    fitted = fit_distribution(training)
    assert fitted is not None and fitted["axes"].shape == (19, 20)
    assert distances(others, fitted) == pytest.approx(expected, rel=1e-6)


def test_few_axes_keep_the_total_variance() -> None:
    training = make_features(500, 200)
    fitted = fit_distribution(training)
    assert fitted is not None and fitted["axes"].shape == (64, 200)
    total = float(fitted["variances"].sum() + fitted["elsewhere"] * (200 - 64))
    assert total == pytest.approx(to_unit_length(training).var(axis=0).sum(), rel=1e-6)


@pytest.mark.parametrize("samples", [2, 3, 10, 300])
def test_what_is_elsewhere_is_farther_with_any_number_of_samples(samples: int) -> None:
    fitted = fit_distribution(make_features(samples, 100))
    assert fitted is not None
    near = distances(make_features(100, 100, seed=1), fitted)
    far = distances(-make_features(100, 100, seed=2), fitted)
    assert np.isfinite(near).all() and near.max() < far.min()


@pytest.mark.parametrize("features", [np.zeros((5, 8)), np.ones((5, 8)), np.ones((1, 8))])
def test_features_that_are_all_the_same_are_not_screened_by(features: np.ndarray) -> None:
    assert fit_distribution(features) is None
    assert fit_ood(features, features, []) is None


def test_training_features_that_vary_along_one_axis_alone_give_distances() -> None:
    """Two kinds of image, each exactly alike: nothing is shrunk, and the other axes have no variance."""
    training = np.tile(np.eye(4)[:2], (6, 1))
    found = fit_ood(training, training, [])
    assert found is not None
    ood, tensors = found
    assert (tensors["variances"] > 0).all() and tensors["elsewhere"] > 0
    near, far = distances(training, tensors), distances(np.eye(4)[2:], tensors)
    assert np.isfinite(ood.threshold) and (near <= ood.threshold).all()
    assert np.isfinite(far).all() and far.min() > 100 * ood.threshold


def test_the_threshold_lets_the_promised_share_of_validation_images_pass() -> None:
    validation = make_features(1000, seed=3)
    found = fit_ood(make_features(300), validation, [])
    assert found is not None
    ood, tensors = found
    passed = distances(validation, tensors) <= ood.threshold
    assert 0.99 <= passed.mean() < 0.995
    fresh = distances(make_features(4000, seed=4), tensors)
    assert (fresh <= ood.threshold).mean() == pytest.approx(0.99, abs=0.007)


def test_what_is_kept_is_small_and_holds_no_feature_of_a_sample() -> None:
    training = make_features(500, 300)
    found = fit_ood(training, training, [])
    assert found is not None
    _, tensors = found
    assert sum(tensor.numel() for tensor in tensors.values()) == 300 + 64 * 300 + 64 + 1
    kept = np.concatenate([tensors["mean"].numpy()[None], tensors["axes"].numpy()])
    alike = to_unit_length(kept) @ to_unit_length(training).T
    assert alike[1:].max() < 0.9 and {str(t.dtype) for t in tensors.values()} == {"torch.float32"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"modality": "MR"}, "modality"),
        ({"body_part": "SKULL"}, "body part"),
        ({"modality": "MR", "body_part": "SKULL"}, "modality"),
        ({"modality": ""}, ""),
        ({"body_part": "what a technician typed into a header"}, ""),
    ],
)
def test_what_a_file_says_is_held_against_the_training_files(changes: dict[str, str], expected: str) -> None:
    assert find_mismatch(make_image(facts=replace(FACTS, **changes)), LIMITS) == expected


@pytest.mark.parametrize(
    ("side_mm", "expected"), [(350, ""), (205, ""), (590, ""), (190, "geometry"), (700, "geometry")]
)
def test_an_image_of_another_size_is_of_another_geometry(side_mm: float, expected: str) -> None:
    assert find_mismatch(make_image(side_mm), LIMITS) == expected


def test_what_is_not_known_is_not_checked() -> None:
    image = make_image(5.0, replace(FACTS, format="nifti"))
    assert find_mismatch(image, LIMITS) == "", "other formats order their axes otherwise"
    assert find_mismatch(replace(make_image(), spacing_mm=None), LIMITS) == ""
    bare = OodLimits(threshold=1.0, quantile=0.99, samples=5)
    assert find_mismatch(make_image(5.0, replace(FACTS, modality="MR", body_part="FOOT")), bare) == ""
    assert find_mismatch(make_image(), None) == ""


def test_what_the_file_says_comes_before_what_the_features_do() -> None:
    assert decide_ood("", 1.9, LIMITS) == "ok"
    assert decide_ood("", 2.1, LIMITS) == FAR
    assert decide_ood("", float("nan"), LIMITS) == FAR, "what is no number is not like the training images"
    assert decide_ood("modality", 0.1, LIMITS) == "modality"
    assert decide_ood("", 0.1, None) == ""


def test_facts_come_from_the_headers_of_the_training_files(tmp_path: Path) -> None:
    for row, side in enumerate((0.5, 0.8)):
        elements = {"Modality": "CR", "BodyPartExamined": "CHEST", "PixelSpacing": [side, side]}
        write_radiograph(tmp_path / f"{row}.dcm", row, **elements)
    features = make_features(5)
    found = fit_ood(features, features, scan(tmp_path).series)
    assert found is not None and found[0].modalities == ("CR",) and found[0].body_parts == ("CHEST",)
    assert found[0].extents_mm == ((12.0, pytest.approx(19.2)), (10.0, 16.0))


@pytest.mark.parametrize("axes", [2, 3])
def test_extents_are_those_of_the_images(axes: int, tmp_path: Path) -> None:
    from medtl.imaging.reader import read_images

    if axes == 3:
        write_volume(tmp_path / "case", 0, 0)
    else:
        write_radiograph(tmp_path / "0.dcm", PixelSpacing=[0.4, 0.3])
    features = make_features(5)
    found = fit_ood(features, features, scan(tmp_path).series)
    (image,) = read_images(tmp_path)
    assert found is not None and len(found[0].extents_mm) == axes
    assert image.spacing_mm is not None
    assert [low for low, _ in found[0].extents_mm] == pytest.approx(
        [count * step for count, step in zip(image.pixels.shape[1:], image.spacing_mm, strict=True)]
    )
    assert find_mismatch(image, found[0]) == ""


def test_training_files_that_say_nothing_leave_nothing_to_hold_against(tmp_path: Path) -> None:
    features = make_features(5)
    found = fit_ood(features, features, [Series(Path("a.png"), (), "raster")] * 3)
    assert found is not None
    assert found[0].modalities == found[0].body_parts == found[0].extents_mm == ()

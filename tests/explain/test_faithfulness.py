"""Checks of heatmaps: right maps pass, maps of nothing fail, and each verdict follows its rule."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medtl.core.ids import make_generator
from medtl.data.task import Task
from medtl.errors import ConfigError
from medtl.explain import METHODS, Method
from medtl.explain.audit import AuditSettings, Case, audit, bootstrap, to_json
from medtl.explain.checks import (
    FRACTIONS,
    STABLE,
    SURVIVES,
    delete_and_insert,
    localise,
    noise_correlation,
    random_map,
    randomise,
    rank_correlation,
)
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.models.backbone import Backbone
from medtl.models.classifier import Classifier

BINARY = Task("binary", ("normal", "lesion"))
SIZES = {2: (32, 32), 3: (8, 24, 24)}


class Brightness(nn.Module):
    """A layer whose channels are what is brighter and what is darker than 0.6."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, -0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - 0.6) * self.sides.view(1, -1, *[1] * (x.ndim - 2))).relu()


def bright_lesion_finder(dims: int) -> Classifier:
    """Return a classifier whose score is how much of an image is brighter than 0.6."""
    groups = {"brightness": Brightness()}
    backbone = Backbone(
        "brightness",
        groups,
        spatial_dims=dims,
        in_channels=1,
        num_features=4,
        normalise=nn.Identity(),
        weights=None,
    )
    classifier = Classifier(backbone, BINARY, dropout=0.0)
    with torch.no_grad():
        classifier.head.linear.weight.zero_()
        classifier.head.linear.weight[1] = 4.0 ** (dims - 2) * torch.tensor([400.0, 0.0, 200.0, 0.0])
        classifier.head.linear.bias.copy_(torch.tensor([0.0, -2.0]))
    return classifier.eval()


def image_with_lesion(dims: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Return faint noise (1, 1, *size) with a bright block, and the block's mask (*size)."""
    generator = np.random.default_rng(seed)
    pixels = generator.random(SIZES[dims], dtype=np.float32) * 0.3
    corner = [int(generator.integers(0, extent - extent // 4)) for extent in SIZES[dims]]
    block = tuple(slice(c, c + extent // 4) for c, extent in zip(corner, SIZES[dims], strict=True))
    pixels[block] = 1.0
    mask = np.zeros(SIZES[dims])
    mask[block] = 1
    return torch.from_numpy(pixels)[None, None], mask


@pytest.fixture
def constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the method `centre`, which looks at no weights: a blob in the middle of every image."""

    def centre(classifier: Classifier, image: Tensor, target: int) -> np.ndarray:
        axes = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in image.shape[2:]), indexing="ij")
        return np.exp(-4 * sum(axis**2 for axis in axes)).astype(np.float32)

    monkeypatch.setitem(METHODS, "centre", Method("Centre", centre))


@pytest.mark.parametrize("dims", [2, 3])
def test_deleting_the_lesion_takes_the_score_away(dims: int) -> None:
    image, mask = image_with_lesion(dims)
    right = delete_and_insert(bright_lesion_finder(dims), image, mask.astype(np.float32), 1)
    wrong = delete_and_insert(bright_lesion_finder(dims), image, 1 - mask.astype(np.float32), 1)
    assert right.deletion[0] > 0.9 and right.deletion[-1] < 0.2
    assert right.insertion[0] == pytest.approx(right.deletion[-1])
    assert right.deletion_gain > 0.05 and right.insertion_gain > 0.05
    assert wrong.deletion_gain < 0 and wrong.insertion_gain < 0


def test_deletion_is_the_same_each_time_and_differs_by_seed() -> None:
    image, mask = image_with_lesion(2)
    once, again, other = (
        delete_and_insert(bright_lesion_finder(2), image, mask.astype(np.float32), 1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert once == again and once.deletion_gain != other.deletion_gain


def test_the_gains_are_the_areas_between_the_curves_and_those_of_a_random_map() -> None:
    image, mask = image_with_lesion(2)
    chance = random_map(mask, make_generator(0, "random-map", 0))
    found, by_chance = (delete_and_insert(bright_lesion_finder(2), image, one, 1) for one in (mask, chance))
    areas = [
        np.trapezoid(np.subtract(by_chance.deletion, found.deletion), FRACTIONS),
        np.trapezoid(np.subtract(found.insertion, by_chance.insertion), FRACTIONS),
    ]
    assert [found.deletion_gain, found.insertion_gain] == pytest.approx(areas)


def test_a_random_map_is_as_smooth_as_the_heatmap_and_elsewhere() -> None:
    rows, columns = np.mgrid[:64, :64]
    smooth = np.exp(-((rows - 20) ** 2 + (columns - 40) ** 2) / 50).astype(np.float32)
    drawn = [random_map(smooth, np.random.default_rng(draw)) for draw in range(20)]
    steps = [np.abs(np.diff(one, axis=0)).mean() / one.std() for one in (smooth, *drawn)]
    rough = np.random.default_rng(0).permutation(smooth.ravel()).reshape(64, 64)
    assert max(steps[1:]) < 3 * steps[0] < np.abs(np.diff(rough, axis=0)).mean() / rough.std()
    spectra = [np.abs(np.fft.fftn(one)) for one in (smooth, drawn[0])]
    np.testing.assert_allclose(spectra[1], spectra[0], atol=1e-3)
    assert abs(np.mean([rank_correlation(one, smooth) for one in drawn])) < 0.25


def test_all_weights_are_shuffled_and_the_original_is_kept(make_classifier) -> None:
    classifier = make_classifier().eval()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    whole = randomise(classifier)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert changed(whole, before) == {"head", "top", "middle", "stem"}
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parameter.flatten().sort().values, before[name].flatten().sort().values)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), randomise(classifier).parameters()))


def changed(classifier: Classifier, before: dict[str, Tensor]) -> set[str]:
    """Name the head and the groups of which a weight differs from before."""
    moved = [name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])]
    return {name.split(".")[2] if name.startswith("backbone") else "head" for name in moved}


def test_a_map_that_looks_at_no_weights_survives_and_is_flagged(make_classifier, constant: None) -> None:
    classifier, image = make_classifier().eval(), torch.rand(1, 1, 32, 32)
    heatmap = METHODS["centre"](classifier, image, 1)
    correlation = rank_correlation(heatmap, METHODS["centre"](randomise(classifier), image, 1))
    assert correlation == pytest.approx(1) and correlation > SURVIVES


def test_a_map_of_the_weights_does_not_survive() -> None:
    classifier, (image, mask) = bright_lesion_finder(2), image_with_lesion(2)
    heatmap = METHODS["grad-cam"](classifier, image, 1)
    assert localise(heatmap, mask).energy > 0.9
    unlearnt = METHODS["grad-cam"](randomise(classifier, seed=3), image, 1)
    assert rank_correlation(heatmap, unlearnt) < 0.9


def test_stability_tells_a_steady_map_from_a_jumpy_one(
    make_classifier, constant: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, image = make_classifier().eval(), torch.rand(1, 1, 32, 32)

    def jumpy(classifier: Classifier, image: Tensor, target: int) -> np.ndarray:
        seed = int(image.double().sum() * 1e6)
        return np.random.default_rng(seed).random(image.shape[2:]).astype(np.float32)

    monkeypatch.setitem(METHODS, "jumpy", Method("Jumpy", jumpy))
    steady, unsteady = (
        noise_correlation(classifier, image, METHODS[name](classifier, image, 1), 1, name)
        for name in ("centre", "jumpy")
    )
    assert steady == pytest.approx(1) and steady > STABLE
    assert abs(unsteady) < 0.2 < STABLE


def test_rank_correlation_with_nothing_is_nothing() -> None:
    rising = np.arange(12.0).reshape(3, 4)
    assert rank_correlation(rising, rising**3) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    assert rank_correlation(rising, np.zeros((3, 4))) == 0


def make_cases(dims: int, patients: int, images_each: int = 1) -> list[Case]:
    """Return cases whose images have the size of what the network takes."""
    cases = []
    for number in range(patients * images_each):
        tensor, mask = image_with_lesion(dims, seed=number)
        affine = None if dims == 2 else np.diag([-1.0, -1.0, 1.0, 1.0])
        image = Image(tensor[0].numpy(), affine, None if dims == 2 else (1.0,) * 3, ImageFacts("", "test"))
        prepared = prepare_image(image, PreprocessingConfig(size=SIZES[dims], orientation="LPS"))
        cases.append(Case(image, prepared, 1, f"patient {number // images_each}", mask))
    return cases


@pytest.mark.parametrize("dims", [2, 3])
def test_an_audit_tells_a_method_that_is_right_from_one_that_looks_at_nothing(
    dims: int, constant: None
) -> None:
    cases = make_cases(dims, patients=6)
    told = []
    right, nothing = audit(
        bright_lesion_finder(dims),
        cases,
        ("occlusion", "centre"),
        AuditSettings(map_cases=3, noise_draws=1),
        lambda done, total: told.append((done, total)),
    )
    verdicts = {check.name: check.verdict for check in right.checks}
    assert [check.name for check in right.checks] == [
        "deletion",
        "insertion",
        "randomisation",
        "stability",
        "pointing",
        "energy",
    ]
    assert verdicts["deletion"] == verdicts["insertion"] == verdicts["energy"] == "passed"
    assert {check.name: check.cases for check in right.checks}["stability"] == 3
    failed = {check.name: check.verdict for check in nothing.checks}
    assert failed["randomisation"] == "failed" and failed["stability"] == "passed"
    assert "survives randomisation" in nothing.words and f"passed {nothing.passed} of 6" in nothing.words
    assert right.passed > nothing.passed
    assert told[-1] == (12, 12)
    json.dumps(to_json([right, nothing]), allow_nan=False)


def test_one_patient_decides_nothing(constant: None) -> None:
    (row,) = audit(
        bright_lesion_finder(2),
        make_cases(2, patients=1, images_each=2),
        ("centre",),
        AuditSettings(map_cases=1, noise_draws=1),
    )
    assert {check.verdict for check in row.checks} == {"undecided"} and row.passed == 0
    assert "deletion undecided" in row.words
    assert to_json([row])[0]["checks"]["deletion"]["low"] is None


def test_empty_maps_are_counted_and_are_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Method("Empty", lambda c, image, t: np.zeros(image.shape[2:], np.float32))
    monkeypatch.setitem(METHODS, "empty", empty)
    (row,) = audit(bright_lesion_finder(2), make_cases(2, patients=2), ("empty",))
    assert row.empty == 2 and row.passed == 0 and "2 of 2 maps are empty" in row.words
    assert math.isnan(row.checks[0].value.value)
    json.dumps(to_json([row]), allow_nan=False)


def test_an_unknown_method_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigError, match="is no saliency method"):
        audit(bright_lesion_finder(2), make_cases(2, patients=2), ("grad-kam",))


def test_intervals_come_from_patients_not_from_their_images() -> None:
    generator = np.random.default_rng(0)
    effects = generator.standard_normal(12)
    values, patients = np.repeat(effects, 10), [str(number) for number in np.repeat(np.arange(12), 10)]
    by_patient = bootstrap(values, patients)
    by_image = bootstrap(values, [str(number) for number in range(120)])
    assert by_patient.value == by_image.value == pytest.approx(effects.mean())
    assert by_patient.high - by_patient.low > 2 * (by_image.high - by_image.low)
    assert math.isnan(bootstrap([], []).value) and math.isnan(bootstrap([1.0], ["a"]).low)

"""The contract that every registered backbone keeps.

One small member of each family runs in every test run, all of them with -m long.
"""

import copy

import pytest
import torch

from medtl.data.task import Task
from medtl.errors import WeightsError
from medtl.explain.cam import grad_cam
from medtl.models.backbones import BACKBONES, IMAGENET
from medtl.models.backbones.nasnet import cell_groups
from medtl.models.backbones.vit import lay_out, line_up
from medtl.models.classifier import Classifier
from medtl.models.timm_network import TimmNetwork, timm_entry
from medtl.training.schedule import ScheduleConfig

PLANAR_QUICK = {
    "efficientnet_lite0",
    "mobilenet_v3_small",
    "resnet18",
    "resnet18d",
    "densenet121",
    "inception_v3",
    "xception",
    "vgg11_bn",
    "alexnet",
    "convnext_atto",
    "swin_tiny",
    "vit_tiny",
}
FIT_QUICK = PLANAR_QUICK - {"inception_v3", "xception", "vgg11_bn", "swin_tiny", "resnet18d"}
QUICK = PLANAR_QUICK | {
    "mobilenet_v2",
    "radimagenet_resnet50",
    "slices_efficientnet_lite0",
    "inflated_resnet18",
    "medicalnet_resnet10",
    "nasnet_narrow",
}

# NASNet's wiring at a twentieth of its width: the published network takes a minute to test.
NARROW = TimmNetwork("nasnetalarge.tf_in1k", cell_groups, options={"stem_size": 8, "num_features": 24 * 8})
ENTRIES = {name: entry for name, entry in BACKBONES.items() if entry.family != "tiny"}
ENTRIES["nasnet_narrow"] = timm_entry("nasnet_narrow", "NASNet", NARROW)
PLANAR = [name for name, entry in ENTRIES.items() if entry.spatial_dims == 2]


KNOWN_FAMILIES = {ENTRIES[name].family for name in QUICK}
# A family that is new here is tested whole until its small member is named above.
NEW = {entry.name for entry in IMAGENET if entry.family not in KNOWN_FAMILIES}


def quick_and_long(names, quick):
    return [name if name in quick | NEW else pytest.param(name, marks=pytest.mark.long) for name in names]


def images(entry, count: int = 2, in_channels: int = 1) -> torch.Tensor:
    """Return images of nearly the smallest size, wider than high, so that axes cannot be confused."""
    side = max(entry.sizes.smallest, 32)
    size = (side, side + 2 * max(entry.sizes.multiple, 4))
    shape = (count, in_channels, *(size if entry.spatial_dims == 2 else (4, *size)))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=quick_and_long(ENTRIES, QUICK))
def case(request):
    """An entry, its backbone in evaluation mode, and images for it."""
    entry = ENTRIES[request.param]
    torch.manual_seed(0)
    return entry, entry(weights=None, in_channels=1).eval(), images(entry)


@torch.no_grad()
def test_features_are_a_map_that_every_split_of_the_chain_gives_to_the_bit(case):
    _, backbone, x = case
    features = backbone.features(x)
    assert features.shape[:2] == (2, backbone.num_features)
    assert features.ndim == backbone.spatial_dims + 2
    for count in range(len(backbone.groups) + 1):
        activation = backbone.between(0, count, x)
        before = activation.clone()
        assert torch.equal(backbone.between(count, len(backbone.groups), activation), features), (
            backbone.layer_groups[count - 1]
        )
        assert torch.equal(activation, before), "a group altered its input"


def test_groups_partition_the_parameters_and_the_first_one_takes_the_image(case):
    _, backbone, x = case
    in_groups = [id(p) for group in backbone.groups.values() for p in group.parameters()]
    assert in_groups == [id(p) for p in backbone.parameters()]
    assert len(set(in_groups)) == len(in_groups)
    assert all(any(True for _ in group.parameters()) for group in backbone.groups.values())
    assert any(
        p.ndim > 3 and p.shape[1] == x.shape[1]
        for p in backbone.groups[backbone.layer_groups[0]].parameters()
    )


def test_gradient_reaches_every_boundary(case):
    _, backbone, x = case
    for count in range(1, len(backbone.groups) + 1):
        activation = backbone.between(0, count, x).detach().requires_grad_()
        weighed = backbone.between(count, len(backbone.groups), activation).mean(dim=0).square().sum()
        (gradient,) = torch.autograd.grad(weighed, activation)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_frozen_groups_do_not_move_by_one_bit_at_any_depth(case):
    _, backbone, x = case
    classifier = Classifier(copy.deepcopy(backbone), Task("binary", ("no", "yes")))
    groups = backbone.layer_groups
    for frozen in sorted({1, len(groups) // 2, len(groups) - 1, len(groups)}, reverse=True):
        classifier.freeze(frozen, batch_norm_follows_data=True)
        before = copy.deepcopy(classifier.state_dict())
        train_one_step(classifier, x)
        moved = {key for key, value in classifier.state_dict().items() if not torch.equal(before[key], value)}
        inert = tuple(f"backbone.groups.{group}." for group in groups[:frozen])
        assert not [key for key in moved if key.startswith(inert)]
        for group in groups[frozen:]:
            assert any(key.startswith(f"backbone.groups.{group}.") for key in moved), group
        assert any(key.startswith("head.") for key in moved)


def train_one_step(classifier: Classifier, x: torch.Tensor) -> None:
    classifier.train()
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-4)
    loss = torch.nn.functional.cross_entropy(classifier(x), torch.arange(len(x)) % 2)
    loss.backward()
    optimizer.step()


def test_frozen_groups_give_the_same_in_training_as_in_evaluation(case):
    """Dropout, stochastic depth and batch norm are inert where they are frozen."""
    _, backbone, x = case
    classifier = Classifier(copy.deepcopy(backbone), Task("binary", ("no", "yes")))
    classifier.freeze(len(backbone.groups), batch_norm_follows_data=True)
    classifier.train()
    with torch.no_grad():
        assert torch.equal(classifier.backbone.features(x), backbone.features(x))


def test_grad_cam_is_a_finite_map_on_the_image_grid(case):
    _, backbone, x = case
    torch.manual_seed(0)
    classifier = Classifier(copy.deepcopy(backbone), Task("binary", ("no", "yes")))
    maps = [grad_cam(classifier, x[:1], target) for target in (0, 1)]
    for heatmap in maps:
        assert heatmap.shape == x.shape[2:]
        assert (heatmap >= 0).all() and (heatmap <= 1).all()
    # The two classes' scores are each other's opposite: what is zero in one map may not be so in both.
    assert max(heatmap.max() for heatmap in maps) == 1


@pytest.mark.parametrize("name", quick_and_long(PLANAR, PLANAR_QUICK))
def test_three_input_channels_and_unfit_sizes(name):
    entry = ENTRIES[name]
    backbone = entry(weights=None, in_channels=3).eval()
    with torch.no_grad():
        assert backbone.features(images(entry, 1, in_channels=3)).shape[1] == backbone.num_features
    small = torch.zeros(1, 3, entry.sizes.smallest - 1, 2 * entry.sizes.smallest)
    with pytest.raises(ValueError, match=f"{name} takes {entry.sizes.smallest} pixels a side or more"):
        backbone.features(small)


@pytest.mark.parametrize("name", quick_and_long(PLANAR, FIT_QUICK))
def test_one_epoch_of_everything_trains_and_is_finite(make_fit, tmp_path, monkeypatch, name):
    entry = ENTRIES[name]
    monkeypatch.setitem(BACKBONES, name, entry)
    side = max(entry.sizes.smallest, 32)
    schedule = ScheduleConfig(name="full", unfrozen_epochs=1, rate=1e-4)
    fit = make_fit(tmp_path / "run", schedule=schedule, backbone=name, size=(side, side))
    before = copy.deepcopy(fit.classifier.state_dict())
    fit.run(resume=False)
    after = fit.classifier.state_dict()
    assert len(fit.history) == 1 and torch.tensor(float(fit.history[0]["train_loss"])).isfinite()
    trained = [key for key, value in fit.classifier.named_parameters() if value.requires_grad]
    assert trained and all(after[key].isfinite().all() for key in trained)
    assert sum(not torch.equal(before[key], after[key]) for key in trained) > 0.9 * len(trained)


@pytest.mark.parametrize(("name", "side"), [("vit_tiny", 40), ("swin_tiny", 34)])
def test_parts_of_patches_are_refused_in_one_line(name, side):
    with pytest.raises(ValueError, match="in steps of") as caught:
        BACKBONES[name]().features(torch.zeros(1, 1, side, 64))
    assert "\n" not in str(caught.value)


def test_tokens_are_laid_out_row_by_row_below_the_class_token():
    tokens = torch.arange(1 + 2 * 3).view(1, 7, 1).float()
    laid_out = lay_out(tokens, 3)
    assert laid_out[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert torch.equal(line_up(laid_out), tokens)


@torch.no_grad()
def test_vit_map_keeps_the_place_of_its_patches():
    """Each position of the map answers most to its own patch, as random attention nearly averages."""
    torch.manual_seed(0)
    backbone = BACKBONES["vit_tiny"]().eval()
    x = torch.rand(1, 1, 64, 96)
    altered = x.clone()
    altered[:, :, 16:32, 80:96] = 0  # the patch at row 1, column 5
    change = (backbone.features(altered) - backbone.features(x)).abs().sum(dim=1)[0]
    assert divmod(int(change.argmax()), 6) == (1, 5)


@torch.no_grad()
def test_nasnet_chain_is_the_network_that_timm_publishes():
    torch.manual_seed(0)
    net = NARROW.create(3).eval()
    x = torch.rand(1, 3, 64, 80)
    chained = x
    for group in NARROW.groups(net).values():
        chained = group(chained)
    assert torch.equal(chained, net.forward_features(x))


def test_wrong_number_of_axes_is_named():
    with pytest.raises(ValueError, match=r"resnet18 takes \(N, 1, H, W\)"):
        BACKBONES["resnet18"]().features(torch.zeros(1, 1, 4, 32, 32))


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(WeightsError, match="imagenet") as caught:
        BACKBONES["resnet18"](weights="imagnet")
    assert caught.value.code == "weights-unknown"


@pytest.mark.parametrize(
    ("name", "file", "licence"),
    [
        ("resnet50", "resnet50-0676ba61.pth", "BSD-3-Clause"),
        ("vit_tiny", "timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors", "apache-2.0"),
        ("xception", "xception-43020ad28.pth", "apache-2.0"),
    ],
)
def test_absent_weights_say_file_place_and_licence(own_home, name, file, licence):
    with pytest.raises(WeightsError) as caught:
        BACKBONES[name](weights="imagenet")
    line = str(caught.value)
    assert caught.value.code == "weights-missing"
    assert file in line and licence in line
    assert str(own_home / "weights") in caught.value.fix

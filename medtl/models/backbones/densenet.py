"""DenseNet backbones (Huang 2016), which load the ImageNet files of torchvision."""

import re

from medtl.models.backbone import BackboneEntry
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, children, timm_entry
from medtl.models.weights import StateDict

BLOCKS = children(
    stem="features.conv0 features.norm0 features.pool0",
    denseblock1="features.denseblock1 features.transition1",
    denseblock2="features.denseblock2 features.transition2",
    denseblock3="features.denseblock3 features.transition3",
    denseblock4="features.denseblock4",
    final="features.norm5",
)


def rename_early(state: StateDict) -> StateDict:
    """Rename `norm.1`, as torchvision's files have it, to `norm1`."""
    return {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key): value for key, value in state.items()}


def densenet(name: str) -> BackboneEntry:
    """Return a DenseNet: stem, four dense blocks with their transitions, final norm."""
    network = TimmNetwork(f"{name}.tv_in1k", BLOCKS, rename=rename_early)
    return timm_entry(name, "DenseNet", network, torchvision_imagenet(name))


DENSENET121, DENSENET169 = densenet("densenet121"), densenet("densenet169")
ENTRIES = (DENSENET121, DENSENET169)

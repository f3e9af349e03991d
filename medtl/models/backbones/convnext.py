"""ConvNeXt backbones (Liu 2022)."""

from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, children, rename_by_parts, timm_entry
from medtl.models.weights import StateDict

# The published networks normalise after pooling; here the same norm comes before it, position by position, as
# Swin and ViT have it, so that the feature map has the scale of the features.
STAGES = children(
    stem="stem", stage1="stages.0", stage2="stages.1", stage3="stages.2", stage4="stages.3", final="head.norm"
)

# torchvision counts stem, stage, downsampling, stage, ... as features 0 to 7.
TORCHVISION_NAMES = {
    "features.0.": "stem.",
    **{f"features.{2 * stage + 1}.": f"stages.{stage}.blocks." for stage in range(4)},
    **{f"features.{2 * stage}.": f"stages.{stage}.downsample." for stage in (1, 2, 3)},
    ".block.0.": ".conv_dw.",
    ".block.2.": ".norm.",
    ".block.3.": ".mlp.fc1.",
    ".block.5.": ".mlp.fc2.",
    ".layer_scale": ".gamma",
    "classifier.0.": "head.norm.",
    "classifier.2.": "head.fc.",
}


def rename_torchvision(state: StateDict) -> StateDict:
    """Give torchvision's tensors timm's names, and its layer scales (C, 1, 1) timm's shape (C,)."""
    renamed = rename_by_parts(state, TORCHVISION_NAMES)
    return {key: value.flatten() if key.endswith(".gamma") else value for key, value in renamed.items()}


CONVNEXT_ATTO = timm_entry("convnext_atto", "ConvNeXt", TimmNetwork("convnext_atto.d2_in1k", STAGES))
CONVNEXT_TINY = timm_entry(
    "convnext_tiny",
    "ConvNeXt",
    TimmNetwork("convnext_tiny.fb_in1k", STAGES, rename=rename_torchvision),
    torchvision_imagenet("convnext_tiny"),
)
ENTRIES = (CONVNEXT_ATTO, CONVNEXT_TINY)

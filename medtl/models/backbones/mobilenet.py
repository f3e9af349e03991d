"""MobileNet v2 (Sandler 2018) and v3 (Howard 2019) backbones."""

from functools import partial

from medtl.models.backbone import BackboneEntry
from medtl.models.backbones.efficientnet import block_stages
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, rename_by_position, timm_entry
from medtl.models.weights import KnownWeights

# The last group at stride 16, as in EfficientNet, whose design they share; not measured.
STRIDE_16 = 6
STRIDE_16_OF_SMALL = 5


def mobilenet(
    name: str, timm_name: str, saliency_group: int, known: tuple[KnownWeights, ...] | None = None
) -> BackboneEntry:
    """Return a MobileNet: stem and block stages. Version 3 pools before its last convolution, a head then."""
    network = TimmNetwork(
        timm_name,
        block_stages,
        head=("conv_head", "norm_head") if "v3" in timm_name else (),
        rename=partial(rename_by_position, timm_name=timm_name),
        saliency_group=saliency_group,
    )
    return timm_entry(name, "MobileNet", network, known)


MOBILENET_V2 = mobilenet(
    "mobilenet_v2", "mobilenetv2_100.ra_in1k", STRIDE_16, torchvision_imagenet("mobilenet_v2")
)
# torchvision's version 3 has another epsilon in its batch norm: these two load timm's files.
MOBILENET_V3_SMALL = mobilenet("mobilenet_v3_small", "mobilenetv3_small_100.lamb_in1k", STRIDE_16_OF_SMALL)
MOBILENET_V3_LARGE = mobilenet("mobilenet_v3_large", "mobilenetv3_large_100.ra_in1k", STRIDE_16)
ENTRIES = (MOBILENET_V2, MOBILENET_V3_SMALL, MOBILENET_V3_LARGE)

"""Inception v3 backbone (Szegedy 2015), without its auxiliary head."""

from medtl.models.backbone import SizeRule
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, children, timm_entry

INCEPTION_V3 = timm_entry(
    "inception_v3",
    "Inception",
    TimmNetwork(
        "inception_v3.tv_in1k",
        children(
            stem="Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Pool1",
            conv3_4="Conv2d_3b_1x1 Conv2d_4a_3x3 Pool2",
            mixed5="Mixed_5b Mixed_5c Mixed_5d",
            mixed6a_c="Mixed_6a Mixed_6b Mixed_6c",
            mixed6d_e="Mixed_6d Mixed_6e",
            mixed7="Mixed_7a Mixed_7b Mixed_7c",
        ),
        head=("AuxLogits",),
    ),
    torchvision_imagenet("inception_v3"),
    SizeRule(smallest=75),  # its convolutions without padding leave nothing of smaller images
)
ENTRIES = (INCEPTION_V3,)

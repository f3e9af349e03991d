"""Xception (Chollet 2016), and the aligned Xception-41 of DeepLab (Chen 2018)."""

from medtl.models.backbone import SizeRule
from medtl.models.timm_network import TimmNetwork, children, timm_entry

XCEPTION = timm_entry(
    "xception",
    "Xception",
    TimmNetwork(
        "legacy_xception.tf_in1k",
        children(
            stem="conv1 bn1 act1 conv2 bn2 act2",
            entry1="block1",
            entry2="block2",
            entry3="block3",
            middle1="block4 block5 block6 block7",
            middle2="block8 block9 block10 block11",
            exit1="block12",
            exit2="conv3 bn3 act3 conv4 bn4 act4",
        ),
    ),
    sizes=SizeRule(smallest=71),
)
XCEPTION41 = timm_entry(
    "xception41",
    "Xception",
    TimmNetwork(
        "xception41.tf_in1k",
        children(
            stem="stem",
            entry1="blocks.0",
            entry2="blocks.1",
            entry3="blocks.2",
            middle1="blocks.3 blocks.4 blocks.5 blocks.6",
            middle2="blocks.7 blocks.8 blocks.9 blocks.10",
            exit1="blocks.11",
            exit2="blocks.12 act",
        ),
    ),
)
ENTRIES = (XCEPTION, XCEPTION41)

"""RadImageNet's networks (Mei 2022): 2D backbones trained on CT, MR and ultrasound, whose files users supply.

The published files hold torchvision's networks without their heads, as children of a Sequential named
`backbone`: `backbone.4.0.conv1.weight` is `layer1.0.conv1.weight`, since layer1 is the child in place 4.
"""

import re
from functools import partial

from medtl.models.backbone import BackboneEntry
from medtl.models.derived import retrained
from medtl.models.weights import KnownWeights, StateDict

# torchvision's children in the order of their places.
RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
DENSENET_CHILDREN = ("features",)
INCEPTION_CHILDREN = (
    *(
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "maxpool1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "maxpool2",
    ),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)

# The authors' notebook takes (x - 127.5) * 2 / 255 of 8-bit images; a mirror says ImageNet's statistics.
STATISTICS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

LICENCE = "unclear: the authors state none, a mirror says MIT, the data are given on request"


def radimagenet(planar: BackboneEntry, published: str, children: tuple[str, ...]) -> BackboneEntry:
    """Return the entry of a RadImageNet network; `published` is its file's name without .pt."""
    source = f"{published}.pt of the RadImageNet authors"
    known = KnownWeights("radimagenet", f"RadImageNet-{published}.pt", "", LICENCE, source)
    rename = partial(rename_by_place, children=children)
    return retrained(planar, "RadImageNet", (known,), rename, STATISTICS)


def rename_by_place(state: StateDict, children: tuple[str, ...]) -> StateDict:
    """Return a state dict under torchvision's names, `children` being those of the places."""
    named = {}
    for key, value in state.items():
        if not key.startswith("backbone."):
            # Another network of the same shapes would load, and get the wrong input statistics.
            raise ValueError(f"has {key}, and not only children of `backbone` as RadImageNet's files do")
        match = re.fullmatch(r"backbone\.(\d+)\.(.+)", key)
        known = match is not None and int(match[1]) < len(children)  # others are refused by name
        named[f"{children[int(match[1])]}.{match[2]}" if match and known else key] = value
    return named

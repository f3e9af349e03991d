"""RadImageNet's networks (Mei 2022): 2D backbones trained on CT, MR and ultrasound, whose files users supply.

The published files hold torchvision's networks without their heads, as children of a Sequential named
`backbone`: `backbone.4.0.conv1.weight` is `layer1.0.conv1.weight`, since layer1 is the child in place 4.
"""

import re
from dataclasses import dataclass, replace
from functools import partial

from medtl.errors import WeightsError
from medtl.models.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.models.weights import KnownWeights, LoadedWeights, StateDict

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
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

LICENCE = "unclear: the authors state none, a mirror says MIT, the data are given on request"


@dataclass(frozen=True)
class ByPlace(WeightsRequest):
    """A request whose file names tensors by the place of a child, `children` being their names."""

    children: tuple[str, ...] = ()

    def read(self) -> tuple[StateDict, LoadedWeights] | None:
        """Return the state dict under torchvision's names. Raises WeightsError weights-mismatch."""
        read = super().read()
        if read is None:
            return None
        state, loaded = read
        others = [key for key in state if not key.startswith("backbone.")]
        if others:
            # Another network of the same shapes would load, and get the wrong input statistics.
            reason = f"has {others[0]}, and not only children of `backbone` as RadImageNet's files do"
            fix = f"give weights of {self.backbone}"
            raise WeightsError("weights-mismatch", reason, where=loaded.path, fix=fix)
        named = {}
        for key, value in state.items():
            match = re.fullmatch(r"backbone\.(\d+)\.(.+)", key)
            known = match is not None and int(match[1]) < len(self.children)  # others are refused by name
            named[f"{self.children[int(match[1])]}.{match[2]}" if match and known else key] = value
        return named, loaded


def build_radimagenet(
    planar: BackboneEntry, children: tuple[str, ...], in_channels: int, request: WeightsRequest
) -> Backbone:
    """Build the planar backbone with RadImageNet's weights and input statistics."""
    by_place = ByPlace(request.backbone, request.weights, request.known, children)
    backbone = planar.build(in_channels, by_place)
    backbone.normalise = Standardise(MEAN, STD, in_channels)
    return backbone


def radimagenet(planar: BackboneEntry, published: str, children: tuple[str, ...]) -> BackboneEntry:
    """Return the entry of a RadImageNet network; `published` is its file's name without .pt."""
    known = KnownWeights(
        "radimagenet",
        f"RadImageNet-{published}.pt",
        "",
        LICENCE,
        f"{published}.pt of the RadImageNet authors",
    )
    return replace(
        planar,
        name=f"radimagenet_{planar.name}",
        family=f"{planar.family}, RadImageNet",
        known_weights=(known,),
        build=partial(build_radimagenet, planar, children),
    )

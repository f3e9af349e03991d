"""The backbones: one file per source, one line here for each.

BACKBONES[name](weights=None | name | path, in_channels=1) -> Backbone
"""

from medtl.learning.backbones.backbone import Backbone, BackboneConfig, BackboneEntry
from medtl.learning.backbones.densenet import DENSENET121
from medtl.learning.backbones.efficientnet import EFFICIENTNET_LITE0
from medtl.learning.backbones.medicalnet import MEDICALNET_RESNET10
from medtl.learning.backbones.resnet import RESNET18, RESNET50
from medtl.learning.backbones.slices import slice_encoder

BACKBONES: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        EFFICIENTNET_LITE0,
        RESNET18,
        RESNET50,
        DENSENET121,
        slice_encoder(EFFICIENTNET_LITE0),
        slice_encoder(RESNET18),
        slice_encoder(RESNET50),
        slice_encoder(DENSENET121),
        MEDICALNET_RESNET10,
    )
}

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "BackboneEntry"]

"""The backbones: one file per source, one line here for each.

BACKBONES[name](weights=None | name | path, in_channels=1) -> Backbone
"""

from importlib import import_module

from medtl.models.backbone import Backbone, BackboneEntry
from medtl.models.backbones.densenet import DENSENET121
from medtl.models.backbones.efficientnet import EFFICIENTNET_LITE0
from medtl.models.backbones.inception import INCEPTION_V3
from medtl.models.backbones.medicalnet import MEDICALNET
from medtl.models.backbones.radimagenet import (
    DENSENET_CHILDREN,
    INCEPTION_CHILDREN,
    RESNET_CHILDREN,
    radimagenet,
)
from medtl.models.backbones.resnet import RESNET18, RESNET50
from medtl.models.backbones.torchxrayvision import torchxrayvision_densenet121, torchxrayvision_resnet50
from medtl.models.catalogue import BackboneConfig
from medtl.models.inflated import inflated
from medtl.models.slices import slice_encoder

# The files of this folder with ImageNet networks, each as its ENTRIES. A new one is one line here.
IMAGENET_FILES = (
    "efficientnet",
    "mobilenet",
    "resnet",
    "densenet",
    "inception",
    "xception",
    "nasnet",
    "vgg",
    "alexnet",
    "convnext",
    "swin",
    "vit",
)
IMAGENET: tuple[BackboneEntry, ...] = tuple(
    entry for file in IMAGENET_FILES for entry in import_module(f"{__name__}.{file}").ENTRIES
)
RADIOLOGY = (
    radimagenet(RESNET50, "ResNet50", RESNET_CHILDREN),
    radimagenet(DENSENET121, "DenseNet121", DENSENET_CHILDREN),
    radimagenet(INCEPTION_V3, "InceptionV3", INCEPTION_CHILDREN),
    torchxrayvision_resnet50(RESNET50),
    torchxrayvision_densenet121(DENSENET121),
)
INFLATED = (EFFICIENTNET_LITE0, RESNET18, RESNET50, DENSENET121)

BACKBONES: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        *IMAGENET,
        *RADIOLOGY,
        *(slice_encoder(planar) for planar in (*IMAGENET, *RADIOLOGY)),
        *(inflated(planar) for planar in INFLATED),
        *(inflated(planar, "centre") for planar in INFLATED),
        *MEDICALNET,
    )
}

__all__ = ["BACKBONES", "IMAGENET", "Backbone", "BackboneConfig", "BackboneEntry"]

"""The backbones: one file per source, one line here for each.

BACKBONES[name](weights=None | name | path, in_channels=1) -> Backbone
"""

from medtl.learning.backbones.alexnet import ALEXNET
from medtl.learning.backbones.backbone import Backbone, BackboneConfig, BackboneEntry
from medtl.learning.backbones.convnext import CONVNEXT_ATTO, CONVNEXT_TINY
from medtl.learning.backbones.densenet import DENSENET121, DENSENET169
from medtl.learning.backbones.efficientnet import (
    EFFICIENTNET_B0,
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
)
from medtl.learning.backbones.inception import INCEPTION_V3
from medtl.learning.backbones.inflated import inflated
from medtl.learning.backbones.medicalnet import MEDICALNET
from medtl.learning.backbones.mobilenet import MOBILENET_V2, MOBILENET_V3_LARGE, MOBILENET_V3_SMALL
from medtl.learning.backbones.nasnet import NASNET_LARGE
from medtl.learning.backbones.radimagenet import (
    DENSENET_CHILDREN,
    INCEPTION_CHILDREN,
    RESNET_CHILDREN,
    radimagenet,
)
from medtl.learning.backbones.resnet import RESNET18, RESNET18D, RESNET34, RESNET50, RESNET50D
from medtl.learning.backbones.slices import slice_encoder
from medtl.learning.backbones.swin import SWIN_TINY
from medtl.learning.backbones.torchxrayvision import torchxrayvision_densenet121, torchxrayvision_resnet50
from medtl.learning.backbones.vgg import VGG11, VGG11_BN, VGG16, VGG16_BN
from medtl.learning.backbones.vit import VIT_B_16, VIT_BASE, VIT_SMALL, VIT_TINY
from medtl.learning.backbones.xception import XCEPTION, XCEPTION41

IMAGENET = (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
    EFFICIENTNET_B0,
    MOBILENET_V2,
    MOBILENET_V3_SMALL,
    MOBILENET_V3_LARGE,
    RESNET18,
    RESNET34,
    RESNET50,
    RESNET18D,
    RESNET50D,
    DENSENET121,
    DENSENET169,
    INCEPTION_V3,
    XCEPTION,
    XCEPTION41,
    NASNET_LARGE,
    VGG11,
    VGG11_BN,
    VGG16,
    VGG16_BN,
    ALEXNET,
    CONVNEXT_ATTO,
    CONVNEXT_TINY,
    SWIN_TINY,
    VIT_TINY,
    VIT_SMALL,
    VIT_BASE,
    VIT_B_16,
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

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "BackboneEntry"]

"""ResNet (He 2015) and ResNet-vd (He 2018, "bag of tricks") backbones."""

from medtl.models.backbone import BackboneEntry
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, children, timm_entry

STAGES = children(
    stem="conv1 bn1 act1 maxpool", layer1="layer1", layer2="layer2", layer3="layer3", layer4="layer4"
)


def resnet(name: str) -> BackboneEntry:
    """Return a ResNet, which loads the files of torchvision."""
    return timm_entry(name, "ResNet", TimmNetwork(f"{name}.tv_in1k", STAGES), torchvision_imagenet(name))


def resnet_vd(name: str, timm_name: str) -> BackboneEntry:
    """Return a ResNet-vd: a stem of three 3x3 convolutions, and average pooling in strided shortcuts."""
    return timm_entry(name, "ResNet-vd", TimmNetwork(timm_name, STAGES))


RESNET18, RESNET34, RESNET50 = resnet("resnet18"), resnet("resnet34"), resnet("resnet50")
RESNET18D = resnet_vd("resnet18d", "resnet18d.ra2_in1k")
RESNET50D = resnet_vd("resnet50d", "resnet50d.ra2_in1k")
ENTRIES = (RESNET18, RESNET34, RESNET50, RESNET18D, RESNET50D)

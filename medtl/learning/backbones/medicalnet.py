"""MedicalNet's 3D ResNet-10, as it was trained: strided stem, dilated last stages, output stride 8.

Facts from Chen, Ma and Zheng 2019 (arXiv 1904.00625) and the published files' tensor names.
"""

from torch import Tensor, nn

from medtl.learning.backbones.backbone import Backbone, BackboneEntry, StandardiseForeground, WeightsRequest
from medtl.learning.weights import KnownWeights, StateDict, sum_input_kernels

STEM = "conv1.weight"


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions with a shortcut, which is a 1x1x1 convolution where the shape changes."""

    def __init__(self, in_planes: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3(in_planes, planes, stride, dilation)
        self.bn1 = nn.BatchNorm3d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm3d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            projection = nn.Conv3d(in_planes, planes, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(planes))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class MedicalNetResNet10(nn.Module):
    """The encoder of MedicalNet-Resnet10 under the published tensor names."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock3d(64, 64, stride=1, dilation=1))
        self.layer2 = nn.Sequential(BasicBlock3d(64, 128, stride=2, dilation=1))
        self.layer3 = nn.Sequential(BasicBlock3d(128, 256, stride=1, dilation=2))
        self.layer4 = nn.Sequential(BasicBlock3d(256, 512, stride=1, dilation=4))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")


def build_resnet10(in_channels: int, request: WeightsRequest) -> Backbone:
    """Build MedicalNet ResNet-10: stem and four stages; 512 features at stride 8."""
    net = MedicalNetResNet10(in_channels)
    loaded = request.load_into(net, lambda state: _adapt(state, in_channels))
    stages = {f"layer{index}": getattr(net, f"layer{index}") for index in (1, 2, 3, 4)}
    return Backbone(
        request.backbone,
        {"stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), **stages},
        spatial_dims=3,
        in_channels=in_channels,
        num_features=512,
        normalise=StandardiseForeground(),
        weights=loaded,
    )


def _adapt(state: StateDict, in_channels: int) -> StateDict:
    return sum_input_kernels(state, STEM, in_channels)


def _conv3(in_planes: int, planes: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(
        in_planes, planes, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def _known(file: str, name: str, source: str) -> KnownWeights:
    return KnownWeights(name, file, "", "MIT", source)


MEDICALNET_RESNET10 = BackboneEntry(
    "medicalnet_resnet10",
    "MedicalNet",
    3,
    (56, 448, 448),
    (
        _known("resnet_10_23dataset.pth", "medicalnet", "MedicalNet-Resnet10, 23 data sets"),
        _known("resnet_10.pth", "medicalnet-8", "MedicalNet-Resnet10, 8 data sets"),
    ),
    build_resnet10,
)

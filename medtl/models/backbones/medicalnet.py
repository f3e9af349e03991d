"""MedicalNet's 3D ResNets, as they were trained: strided stem, dilated last stages, output stride 8.

Facts from Chen, Ma and Zheng 2019 (arXiv 1904.00625) and the published files' tensor names. Output strides 16
and 32 take the same weights: their feature map is that of stride 8 at every second or fourth place, for less
work.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from medtl.models.backbone import Backbone, BackboneEntry, StandardiseForeground, WeightsRequest
from medtl.models.weights import KnownWeights, sum_input_kernels

STEM = "conv1.weight"

# Blocks of the four stages.
BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
BOTTLENECKED = (50, 101, 152, 200)
# Depths whose shortcuts have no weights (type A); the others project (type B).
UNPROJECTED = (18, 34)
# Depths that were also published as trained on 23 data sets.
ON_23_DATA_SETS = (10, 18, 34, 50)

WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Grid:
    """How one stage samples space: the stride of its first block, and the dilation up to and after it."""

    stride: int = 1
    dilation: int = 1
    dilation_after: int = 1


# Stages 1 and 2 are alike for every output stride. Stages 3 and 4 were trained without stride, dilated by 2
# and 4. Where one strides instead, what follows is dilated less, so that each kernel meets the same voxels.
EARLY = (Grid(), Grid(stride=2))
LATE = {
    8: (Grid(1, 2, 2), Grid(1, 4, 4)),
    16: (Grid(2, 2, 1), Grid(1, 2, 2)),
    32: (Grid(2, 2, 1), Grid(2, 2, 1)),
}


class PadChannels(nn.Module):
    """Shortcut A: every stride-th voxel, with channels of zeros added."""

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = out_planes - in_planes, stride

    def forward(self, x: Tensor) -> Tensor:
        sampled = F.avg_pool3d(x, kernel_size=1, stride=self.stride)
        return F.pad(sampled, (0, 0, 0, 0, 0, 0, 0, self.added))


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, grid: Grid, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3(in_planes, planes, grid.stride, grid.dilation)
        self.bn1 = nn.BatchNorm3d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3(planes, planes, 1, grid.dilation_after)
        self.bn2 = nn.BatchNorm3d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck3d(nn.Module):
    """A 3x3x3 convolution between two of 1x1x1, with a shortcut; four times as many channels come out."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, grid: Grid, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_planes, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = _conv3(planes, planes, grid.stride, grid.dilation)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, planes * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class MedicalNet(nn.Module):
    """The encoder of a MedicalNet ResNet under the published tensor names."""

    def __init__(self, depth: int, in_channels: int, output_stride: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        in_planes = 64
        for stage, grid in enumerate((*EARLY, *LATE[output_stride])):
            blocks, in_planes = _make_stage(depth, stage, in_planes, grid)
            setattr(self, f"layer{stage + 1}", blocks)
        self.num_features = in_planes
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")


def _make_stage(depth: int, stage: int, in_planes: int, grid: Grid) -> tuple[nn.Sequential, int]:
    """Return the blocks of a stage and the number of channels that come out of it."""
    block = Bottleneck3d if depth in BOTTLENECKED else BasicBlock3d
    out_planes = WIDTHS[stage] * block.expansion
    shortcut: nn.Module | None = None
    if grid.stride == 1 and in_planes == out_planes:
        pass
    elif depth in UNPROJECTED:
        shortcut = PadChannels(in_planes, out_planes, grid.stride)
    else:
        projection = nn.Conv3d(in_planes, out_planes, kernel_size=1, stride=grid.stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm3d(out_planes))
    after = Grid(1, grid.dilation_after, grid.dilation_after)
    first = block(in_planes, WIDTHS[stage], grid, shortcut)
    others = (block(out_planes, WIDTHS[stage], after, None) for _ in range(BLOCKS[depth][stage] - 1))
    return nn.Sequential(first, *others), out_planes


def _conv3(in_planes: int, planes: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(
        in_planes, planes, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def build_medicalnet(depth: int, output_stride: int, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build a MedicalNet ResNet: stem and four stages; 512 features, or 2048 for 50 layers and more."""
    net = MedicalNet(depth, in_channels, output_stride)
    loaded = request.load_into(net, lambda state: sum_input_kernels(state, STEM, in_channels))
    stages = {f"layer{index}": getattr(net, f"layer{index}") for index in (1, 2, 3, 4)}
    return Backbone(
        request.backbone,
        {"stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), **stages},
        spatial_dims=3,
        in_channels=in_channels,
        num_features=net.num_features,
        normalise=StandardiseForeground(),
        weights=loaded,
    )


def medicalnet(depth: int, output_stride: int = 8) -> BackboneEntry:
    """Return the entry of a MedicalNet ResNet; the published output stride has no suffix in its name."""
    repository = f"TencentMedicalNet/MedicalNet-Resnet{depth}"
    files = [(f"resnet_{depth}.pth", "medicalnet-8", 8)]
    if depth in ON_23_DATA_SETS:
        files.insert(0, (f"resnet_{depth}_23dataset.pth", "medicalnet", 23))
    known = tuple(  # whose publisher states no SHA-256
        KnownWeights(
            name, file, "", "MIT", f"{repository}, {count} data sets", origin=f"hub:{repository}/{file}"
        )
        for file, name, count in files
    )
    suffix = "" if output_stride == 8 else f"_os{output_stride}"
    build = partial(build_medicalnet, depth, output_stride)
    return BackboneEntry(f"medicalnet_resnet{depth}{suffix}", "MedicalNet", 3, (56, 448, 448), known, build)


MEDICALNET = tuple(medicalnet(depth, stride) for depth in BLOCKS for stride in LATE)

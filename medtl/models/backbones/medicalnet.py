"""MedicalNet's 3D ResNets, as they were trained: strided stem, dilated last stages, output stride 8.

Facts from Chen, Ma and Zheng 2019 (arXiv 1904.00625) and the published files' tensor names. Output strides 16
and 32 take the same weights: their feature map is that of stride 8 at every second or fourth place, for less
work.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medtl.models.backbone import Backbone, BackboneEntry, StandardiseForeground, WeightsRequest
from medtl.models.weights import KnownWeights, sum_input_kernels

STEM = "conv1.weight"
WIDTHS = [64, 128, 256, 512]

# MONAI's name of the blocks, how many the four stages have, and the shortcut: A without weights, B projects.
NETWORKS = {
    10: ("basic", (1, 1, 1, 1), "B"),
    18: ("basic", (2, 2, 2, 2), "A"),
    34: ("basic", (3, 4, 6, 3), "A"),
    50: ("bottleneck", (3, 4, 6, 3), "B"),
    101: ("bottleneck", (3, 4, 23, 3), "B"),
    152: ("bottleneck", (3, 8, 36, 3), "B"),
    200: ("bottleneck", (3, 24, 36, 3), "B"),
}
# Depths that were also published as trained on 23 data sets.
ON_23_DATA_SETS = (10, 18, 34, 50)

# Output stride -> how stages 2 to 4 sample space: their stride, and the dilation up to and after it. The last
# two were trained without stride, dilated by 2 and 4. Where one strides instead, what follows is dilated
# less, so that each kernel meets the same voxels.
SAMPLING = {
    8: ((2, 1, 1), (1, 2, 2), (1, 4, 4)),
    16: ((2, 1, 1), (2, 2, 1), (1, 2, 2)),
    32: ((2, 1, 1), (2, 2, 1), (2, 2, 1)),
}


class PadChannels(nn.Module):
    """Shortcut A: every stride-th voxel, with channels of zeros added."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        sampled = F.avg_pool3d(x, kernel_size=1, stride=self.stride)
        return F.pad(sampled, (0, 0, 0, 0, 0, 0, 0, self.added))


def trained_network(depth: int, in_channels: int, output_stride: int = 8) -> Any:
    """Return MONAI's ResNet, whose tensors have the published names, sampling space as it was trained to.

    MONAI strides stages 3 and 4 and dilates none, and its shortcut A passes no gradient.
    """
    from monai.networks.nets.resnet import ResNet  # late, as it takes seconds to import

    blocks, counts, shortcut = NETWORKS[depth]
    net = ResNet(
        blocks,
        list(counts),
        WIDTHS,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        feed_forward=False,
        bias_downsample=False,
    )
    stages = net.layer2, net.layer3, net.layer4
    for stage, width, sampling in zip(stages, WIDTHS[:3], SAMPLING[output_stride], strict=True):
        _sample_space(stage, *sampling)
        if shortcut == "A":
            stage[0].downsample = PadChannels(width, sampling[0])
    return net


def _sample_space(stage: nn.Module, stride: int, dilation: int, dilation_after: int) -> None:
    """Stride where MONAI does, in the first block, and dilate the first kernel and those after it."""
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv3d)]
    for convolution in convolutions:
        if convolution.stride != (1, 1, 1):
            convolution.stride = (stride,) * 3
    kernels = (convolution for convolution in convolutions if convolution.kernel_size == (3, 3, 3))
    for index, kernel in enumerate(kernels):
        kernel.dilation = kernel.padding = (dilation_after if index else dilation,) * 3


def build_medicalnet(depth: int, output_stride: int, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build a MedicalNet ResNet: stem and four stages; 512 features, or 2048 for 50 layers and more."""
    net = trained_network(depth, in_channels, output_stride)
    loaded = request.load_into(net, lambda state: sum_input_kernels(state, STEM, in_channels))
    stages = {f"layer{index}": getattr(net, f"layer{index}") for index in (1, 2, 3, 4)}
    return Backbone(
        request.backbone,
        {"stem": nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool), **stages},
        spatial_dims=3,
        in_channels=in_channels,
        num_features=net.in_planes,
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


MEDICALNET = tuple(medicalnet(depth, stride) for depth in NETWORKS for stride in SAMPLING)

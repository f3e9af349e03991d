"""3D backbones from 2D ones: every kernel of a planar network is inflated over depth (Carreira 2017, I3D).

Kernels become as deep as they are wide. "repeat" copies each one over depth and divides by the depth, so that
a volume of equal slices gives what the planar network gives on the slice; "centre" puts it into the middle
slice and zeros around it, so that training starts from a network whose kernels see one slice each.

Depth is never shrunk faster than the plane: the stem keeps every slice, since slices are fewer than rows, and
every later layer strides alike in all three axes. Where a kernel reaches over the ends of the volume, the end
slice is repeated.
"""

from functools import partial
from typing import Any, Literal

import torch
from timm.layers import get_same_padding, pad_same, to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.models.backbone import BackboneEntry
from medtl.models.derived import Groups, lifted

Inflation = Literal["repeat", "centre"]

# Layers that do the same to every number of axes.
POINTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Identity, nn.Dropout, nn.GroupNorm)


class DepthPadded(nn.Module):
    """Apply a 3D layer so that ceil(D / stride) slices come out, repeating the end slices where it must.

    Where `same_plane` is given, (kernel, stride, dilation), the plane is padded by zeros as TensorFlow does.
    """

    def __init__(
        self, layer: nn.Module, reach: int, stride: int, same_plane: tuple[Any, Any, Any] | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.reach, self.stride, self.same_plane = reach, stride, same_plane

    def forward(self, x: Tensor) -> Tensor:
        if self.same_plane is not None:
            x = pad_same(x, *self.same_plane)
        # Kernels centre on slices 0, stride, 2 * stride...
        before = (self.reach - 1) // 2
        after = max(get_same_padding(x.shape[2], self.reach, self.stride, 1) - before, 0)
        if before or after:
            # Concatenated, whose gradient is deterministic on CUDA; that of F.pad(mode="replicate") is not.
            x = torch.cat([*[x[:, :, :1]] * before, x, *[x[:, :, -1:]] * after], dim=2)
        return self.layer(x)


def inflate_groups(groups: Groups, inflation: Inflation) -> Groups:
    """Inflate a planar backbone's groups, of which the first keeps the depth."""
    return {
        name: inflate(group, inflation, keep_depth=index == 0)
        for index, (name, group) in enumerate(groups.items())
    }


def inflate(module: nn.Module, inflation: Inflation, *, keep_depth: bool) -> nn.Module:
    """Replace every planar layer of `module` in place, and return it; TypeError names an unknown layer."""
    if isinstance(module, nn.Conv2d):
        return _inflate_convolution(module, inflation, keep_depth)
    if isinstance(module, nn.BatchNorm2d):
        solid = nn.BatchNorm3d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        solid._parameters.update(module._parameters)
        solid._buffers.update(module._buffers)
        # timm keeps the activation that follows inside its norm
        inside = [getattr(module, name) for name in ("drop", "act") if hasattr(module, name)]
        return nn.Sequential(solid, *inside) if inside else solid
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _inflate_pool(module, keep_depth)
    children = list(module.named_children())
    if not children and not isinstance(module, POINTWISE):
        raise TypeError(f"no inflation of {type(module).__name__} is known")
    for name, child in children:
        setattr(module, name, inflate(child, inflation, keep_depth=keep_depth))
    return module


def _inflate_convolution(planar: nn.Conv2d, inflation: Inflation, keep_depth: bool) -> nn.Module:
    if planar.padding_mode != "zeros" or isinstance(planar.padding, str):
        raise TypeError(f"no inflation of padding {planar.padding!r}, {planar.padding_mode} is known")
    depth = planar.kernel_size[0]
    stride = 1 if keep_depth else planar.stride[0]
    by_size = type(planar).__name__ == "Conv2dSame"  # timm pads it by the size of its input
    solid = nn.Conv3d(
        planar.in_channels,
        planar.out_channels,
        (depth, *to_2tuple(planar.kernel_size)),
        (stride, *to_2tuple(planar.stride)),
        (0, *((0, 0) if by_size else to_2tuple(planar.padding))),
        (planar.dilation[0], *to_2tuple(planar.dilation)),
        planar.groups,
        bias=planar.bias is not None,
    )
    kernel = planar.weight.detach().unsqueeze(2)  # (O, I, 1, h, w)
    if inflation == "repeat":
        kernel = kernel.repeat(1, 1, depth, 1, 1) / depth
    else:
        kernel = F.pad(kernel, (0, 0, 0, 0, depth // 2, depth - 1 - depth // 2))
    solid.weight, solid.bias = nn.Parameter(kernel), planar.bias
    same = (planar.kernel_size, planar.stride, planar.dilation) if by_size else None
    reach = (depth - 1) * planar.dilation[0] + 1  # over how many slices
    return solid if reach == stride == 1 and same is None else DepthPadded(solid, reach, stride, same)


def _inflate_pool(planar: nn.MaxPool2d | nn.AvgPool2d, keep_depth: bool) -> nn.Module:
    kernel, plane, padding = (to_2tuple(v) for v in (planar.kernel_size, planar.stride, planar.padding))
    depth, stride = (1, 1) if keep_depth else (kernel[0], plane[0])
    shape: dict[str, Any] = {
        "kernel_size": (depth, *kernel),
        "stride": (stride, *plane),
        "padding": (0, *padding),
        "ceil_mode": planar.ceil_mode,
    }
    if isinstance(planar, nn.AvgPool2d):
        pool: nn.Module = nn.AvgPool3d(**shape, count_include_pad=planar.count_include_pad)
    else:
        pool = nn.MaxPool3d(**shape, dilation=(1, *to_2tuple(planar.dilation)))
    return DepthPadded(pool, depth, stride)


def inflated(planar: BackboneEntry, inflation: Inflation = "repeat") -> BackboneEntry:
    """Return the entry of the inflated backbone; it takes the 2D backbone's weights."""
    prefix = "inflated" if inflation == "repeat" else f"inflated_{inflation}"
    family = f"{planar.family}, inflated"
    return lifted(planar, f"{prefix}_{planar.name}", family, partial(inflate_groups, inflation=inflation))

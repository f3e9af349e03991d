"""3D backbones from 2D ones: every kernel of a planar network is inflated over depth (Carreira 2017, I3D).

Kernels become as deep as they are wide. "repeat" copies each one over depth and divides by the depth, so that
a volume of equal slices gives what the planar network gives on the slice; "centre" puts it into the middle
slice and zeros around it, so that training starts from a network whose kernels see one slice each.

Depth is never shrunk faster than the plane: the stem keeps every slice, since slices are fewer than rows, and
every later layer strides alike in all three axes. Where a kernel reaches over the ends of the volume, the end
slice is repeated.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.models.backbone import Backbone, BackboneEntry, WeightsRequest

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
        if self.same_plane is not None:  # half of what is missing before, the rest after
            rows, columns = (
                _missing(extent, _reach(k, d), s)
                for extent, k, s, d in zip(x.shape[-2:], *self.same_plane, strict=True)
            )
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        # Kernels centre on slices 0, stride, 2 * stride...
        before = (self.reach - 1) // 2
        after = max(_missing(x.shape[2], self.reach, self.stride) - before, 0)
        if before or after:
            # Concatenated, whose gradient is deterministic on CUDA; that of F.pad(mode="replicate") is not.
            x = torch.cat([*[x[:, :, :1]] * before, x, *[x[:, :, -1:]] * after], dim=2)
        return self.layer(x)


def build_inflated(
    planar: BackboneEntry, inflation: Inflation, in_channels: int, request: WeightsRequest
) -> Backbone:
    """Build the planar backbone with its weights, and inflate it group by group."""
    flat = planar.build(in_channels, request)
    groups = {
        name: inflate(group, inflation, keep_depth=index == 0)
        for index, (name, group) in enumerate(flat.groups.items())
    }
    return Backbone(
        request.backbone,
        groups,
        spatial_dims=3,
        in_channels=in_channels,
        num_features=flat.num_features,
        normalise=flat.normalise,
        weights=flat.weights,
        saliency_group=flat.saliency_group,
    )


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
        (depth, *_pair(planar.kernel_size)),
        (stride, *_pair(planar.stride)),
        (0, *((0, 0) if by_size else _pair(planar.padding))),
        (planar.dilation[0], *_pair(planar.dilation)),
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
    reach = _reach(depth, planar.dilation[0])
    return solid if reach == stride == 1 and same is None else DepthPadded(solid, reach, stride, same)


def _inflate_pool(planar: nn.MaxPool2d | nn.AvgPool2d, keep_depth: bool) -> nn.Module:
    kernel, plane, padding = (_pair(v) for v in (planar.kernel_size, planar.stride, planar.padding))
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
        pool = nn.MaxPool3d(**shape, dilation=(1, *_pair(planar.dilation)))
    return DepthPadded(pool, depth, stride)


def _reach(kernel: int, dilation: int) -> int:
    """Return over how many places a kernel reaches."""
    return (kernel - 1) * dilation + 1


def _missing(extent: int, reach: int, stride: int) -> int:
    """Return how many places to add, so that ceil(extent / stride) come out."""
    return max((-(-extent // stride) - 1) * stride + reach - extent, 0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def inflated(planar: BackboneEntry, inflation: Inflation = "repeat") -> BackboneEntry:
    """Return the entry of the inflated backbone; it takes the 2D backbone's weights."""
    prefix = "inflated" if inflation == "repeat" else f"inflated_{inflation}"
    return replace(
        planar,
        name=f"{prefix}_{planar.name}",
        family=f"{planar.family}, inflated",
        spatial_dims=3,
        input_size=(24, *planar.input_size),
        build=partial(build_inflated, planar, inflation),
    )

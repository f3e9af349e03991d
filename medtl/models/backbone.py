"""The backbone contract: an ordered chain of layer groups from images to a feature map."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtl.errors import WeightsError
from medtl.models.catalogue import SizeRule
from medtl.models.weights import KnownWeights, LoadedWeights, StateDict, load_known, load_path, load_strictly

Pooling = Literal["mean", "slice-attention"]
ANY_SIZE = SizeRule()


class Standardise(nn.Module):
    """(x - mean) / std per channel, for images in [0, 1] (N, C, *spatial)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int) -> None:
        super().__init__()
        self.published = mean, std
        self.mean, self.std = _per_channel(mean, in_channels), _per_channel(std, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(shape)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(shape)
        return (x - mean) / std


class StandardiseForeground(nn.Module):
    """(x - mean) / std of each image's voxels above zero; the rest stays zero (MedicalNet's statistics)."""

    def forward(self, x: Tensor) -> Tensor:
        foreground = (x > 0).to(x.dtype)
        axes = tuple(range(1, x.ndim))
        count = foreground.sum(axes, keepdim=True).clamp(min=1)
        mean = (x * foreground).sum(axes, keepdim=True) / count
        variance = (((x - mean) * foreground) ** 2).sum(axes, keepdim=True) / count
        return (x - mean) * foreground / variance.sqrt().clamp(min=1e-6)


class Backbone(nn.Module):
    """A pretrained network without its head, as a chain of layer groups.

    Images (N, in_channels, *spatial) in [0, 1] go through `normalise` and then through the groups, stem
    first; the last one gives the feature map (N, num_features, *grid). The groups partition the parameters.
    No group alters its input: the feature cache and Grad-CAM need it. `saliency_group` counts the groups
    whose output Grad-CAM weighs, a map (N, C, *grid); it is the whole chain by default.
    """

    def __init__(
        self,
        name: str,
        groups: Mapping[str, nn.Module],
        *,
        spatial_dims: int,
        in_channels: int,
        num_features: int,
        normalise: nn.Module,
        weights: LoadedWeights | None,
        pooling: Pooling = "mean",
        saliency_group: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.normalise = normalise
        self.groups = nn.ModuleDict(groups)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.num_features = num_features
        self.weights = weights
        self.pooling = pooling
        self.saliency_group = len(self.groups) if saliency_group is None else saliency_group
        self.sizes = SizeRule()

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """Names of the groups, stem first."""
        return tuple(self.groups.keys())

    def between(self, start: int, stop: int, x: Tensor) -> Tensor:
        """Run groups start to stop. The first group takes images, which are checked and normalised for it."""
        if start == 0 < stop:
            if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
                expected = f"(N, {self.in_channels}, {'D, ' if self.spatial_dims == 3 else ''}H, W)"
                raise ValueError(f"{self.name} takes {expected}, not {tuple(x.shape)}")
            if problem := self.sizes.problem(x.shape[2:]):
                raise ValueError(f"{self.name} {problem}")
            x = self.normalise(x)
        for group in list(self.groups.values())[start:stop]:
            x = group(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """Return the feature map (N, num_features, *grid) of images (N, in_channels, *spatial) in [0, 1]."""
        return self.between(0, len(self.groups), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return features(x)."""
        return self.features(x)


@dataclass(frozen=True)
class BackboneEntry:
    """One line of BACKBONES: what is known of a backbone before it is built, and how to build it.

    build(in_channels, state) returns the untrained or loaded module; see BackboneEntry.__call__.
    """

    name: str
    family: str
    spatial_dims: int
    input_size: tuple[int, ...]
    known_weights: tuple[KnownWeights, ...]
    build: Callable[[int, "WeightsRequest"], Backbone]
    sizes: SizeRule = ANY_SIZE

    def __call__(self, weights: str | Path | None = None, in_channels: int = 1) -> Backbone:
        """Build the backbone from known weights by name, from a file, or untrained (None).

        Raises WeightsError with the codes weights-unknown, -missing, -hash, -mismatch, -unsafe.
        """
        backbone = self.build(in_channels, WeightsRequest(self.name, weights, self.known_weights))
        backbone.sizes = self.sizes
        return backbone

    def describe(self) -> dict[str, Any]:
        """Return this entry's row of catalogue.json; its network is built on torch's meta device."""
        from medtl.models.published import imagenet_top1  # which loads timm and torchvision

        with torch.device("meta"):  # shapes without memory
            backbone = self(weights=None)
        top1 = imagenet_top1()
        normalise = backbone.normalise  # None where each image is standardised by its own statistics
        mean, std = normalise.published if isinstance(normalise, Standardise) else (None, None)
        return {
            "name": self.name,
            "family": self.family,
            "spatial_dims": self.spatial_dims,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "features": backbone.num_features,
            "layer_groups": list(backbone.layer_groups),
            "saliency_group": backbone.layer_groups[backbone.saliency_group - 1],
            "input_size": list(self.input_size),
            "smallest_side": self.sizes.smallest,
            "side_multiple": self.sizes.multiple,
            "mean": mean and list(mean),
            "std": std and list(std),
            "weights": [{**asdict(known), "top1": top1.get(known.file)} for known in self.known_weights],
        }


@dataclass(frozen=True)
class WeightsRequest:
    """Weights that were requested and not yet read: a known name, a path, or None.

    translate: from a file's tensors to those that the backbone's own files have.
    """

    backbone: str
    weights: str | Path | None
    known: tuple[KnownWeights, ...]
    translate: Callable[[StateDict], StateDict] = dict

    def load_into(self, module: nn.Module, adapt: Callable[[StateDict], StateDict]) -> LoadedWeights | None:
        """Load the weights into `module` once `adapt` has renamed and reshaped them; None leaves it as it is.

        Raises WeightsError weights-unknown, -missing, -hash, -unsafe, -mismatch.
        """
        if self.weights is None:
            return None
        state, loaded = self._read(self.weights)
        try:
            adapted = adapt(self.translate(state))
        except (KeyError, IndexError, ValueError) as error:
            reasons = {KeyError: f"has no {error.args[0]}", ValueError: str(error)}
            reason = reasons.get(type(error), "has other tensors")
            fix = f"give weights of {self.backbone}"
            raise WeightsError("weights-mismatch", reason, where=loaded.path, fix=fix) from error
        load_strictly(module, adapted, loaded, self.backbone)
        return loaded

    def _read(self, weights: str | Path) -> tuple[StateDict, LoadedWeights]:
        known = {each.name: each for each in self.known}
        if str(weights) in known:
            return load_known(known[str(weights)], self.backbone)
        if isinstance(weights, Path) or "/" in weights or "." in weights:
            return load_path(Path(weights))
        names = ", ".join(known) or "none: give a file"
        raise WeightsError("weights-unknown", f"no weights {weights!r}", where=self.backbone, fix=names)


def _per_channel(values: tuple[float, ...], in_channels: int) -> tuple[float, ...]:
    """Return published statistics for as many channels; otherwise their mean for each channel."""
    if len(values) == in_channels:
        return values
    return (sum(values) / len(values),) * in_channels

"""IMAGE -> the grid and intensity range that a network takes, by MONAI transforms.

Prepared pixels are always in [0, 1]; the mean and standard deviation that a pretrained network expects belong
to the network. The configuration is the whole state, and is stored in the checkpoint.
"""

import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medtl.errors import ReadError
from medtl.imaging.image import Image, without_padding
from medtl.imaging.series import Reading

if TYPE_CHECKING:  # torch and MONAI are imported where they are used: recipes need neither
    from monai.data import MetaTensor

# Weights of R, G and B in grey (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# The ends of the axes of RAS+: decreasing, increasing.
RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
PAIR_OF = {letter: "".join(pair) for pair in RAS_LABELS for letter in pair}

Percentile = Annotated[float, Field(ge=0, le=100)]

READING_OPTIONS = tuple(one.name for one in fields(Reading))

# The volumes of a file that may become the channels of an image.
MOST_CHANNELS = 256

# Elements of a resampled image: 2 GiB of float32.
LARGEST_GRID = 2**29


class PreprocessingConfig(BaseModel, extra="forbid", frozen=True):
    """The grid and the intensity range of prepared images.

    size: (H, W) for images, (D, H, W) for volumes. spacing_mm, of the same length: resample to this spacing,
    then crop or pad around the centre, so that physical size is kept; without it the image is resized to fit
    (a volume's depth to D, rows and columns by one factor), then padded. orientation: what increasing
    indices of a volume point to, one letter an axis (S superior, P posterior, L left). intensity:
    `percentile` maps the two percentiles to 0 and 1, `window` applies the file's VOI where it has one,
    `range` the two values. channels: 1, 3 for colour, or the number of volumes_as_channels. modalities and
    body_parts: what the model is for, in DICOM's terms; an image whose file names another is refused, one
    that names none is not.

    The others ask more of the readers than exact reading. resample_uneven: resample slices that are tilted or
    unevenly spaced to an even stack, instead of refusing them. fill_nan: give NaN the lowest value of the
    others. volumes_as_channels: read the volumes of one file, or the components of its voxels, as channels of
    one image, each with intensities of its own. invert_by_lut_shape:
    where PresentationLUTShape contradicts PhotometricInterpretation, the former says whether low is white.
    """

    size: tuple[Annotated[int, Field(ge=1)], ...] = (160, 160)
    spacing_mm: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    orientation: str = Field(default="SPL", pattern="^[LRAPSI]{3}$")
    intensity: Literal["percentile", "window", "range"] = "percentile"
    percentiles: tuple[Percentile, Percentile] = (0.5, 99.5)
    range: tuple[float, float] | None = None
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = 1
    modalities: tuple[str, ...] | None = None
    body_parts: tuple[str, ...] | None = None
    resample_uneven: bool = False
    fill_nan: bool = False
    volumes_as_channels: bool = False
    invert_by_lut_shape: bool = False

    @property
    def reading(self) -> Reading:
        """What is asked of the readers."""
        return Reading(*(getattr(self, name) for name in READING_OPTIONS))

    @model_serializer(mode="wrap")
    def _leave_out_readings(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not asked of the readers: a model of an earlier version keeps its identity."""
        values = serialise(self)
        return {name: value for name, value in values.items() if value or name not in READING_OPTIONS}

    @model_validator(mode="after")
    def _options_agree(self) -> "PreprocessingConfig":
        if len(self.size) not in (2, 3) or (len(self.size) == 2 and min(self.size) < 8):
            raise ValueError(f"size {list(self.size)} is neither [H, W] nor [D, H, W]")
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError("spacing_mm needs one value for each axis of size")
        if {PAIR_OF[letter] for letter in self.orientation} != {"LR", "PA", "IS"}:
            raise ValueError(f"orientation {self.orientation} does not name each axis once")
        if self.intensity == "range" and self.range is None:
            raise ValueError("intensity: range needs range: [low, high]")
        if self.channels not in (1, 3) and not self.volumes_as_channels:
            raise ValueError(f"channels: {self.channels} needs volumes_as_channels: true")
        for name, pair in (("percentiles", self.percentiles), ("range", self.range)):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{name} must rise: {list(pair)}")
        return self


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """Prepared pixels float32 (C, *size) in [0, 1], and the affine (4, 4) of their indices.

    The affine maps to the same coordinates as the Image's own: RAS+ mm, or pixel indices of a projection.
    """

    pixels: NDArray[np.float32]
    affine: NDArray[np.float64]


def prepare_image(image: Image, config: PreprocessingConfig) -> PreparedImage:
    """Return the prepared image.

    Raises ReadError image-modality, image-dimensions, image-channels, image-spacing, image-too-large where it
    does not fit.
    """
    import torch
    from monai import transforms
    from monai.data import MetaTensor

    _check_kind(image, config)
    _check_channels(image, config)
    pixels = without_padding(image)
    if pixels.shape[0] != config.channels:
        pixels = np.repeat(to_grey(pixels)[None], config.channels, axis=0)
    tensor = MetaTensor(torch.from_numpy(pixels), affine=torch.from_numpy(image_affine(image)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about constant images; find_warning does that
        tensor = _resample(tensor, image, config)
        tensor = _scale_intensity(tensor, image, config)
        tensor = as_meta(transforms.ResizeWithPadOrCrop(config.size)(tensor))
    values = np.clip(np.nan_to_num(tensor.numpy()), 0.0, 1.0).astype(np.float32)
    return PreparedImage(np.ascontiguousarray(values), np.asarray(tensor.affine, dtype=np.float64))


def shown_channel(image: Image) -> NDArray[np.float32]:
    """Return the pixels (*spatial) that stand for an image where it is shown."""
    return image.pixels[0] if image.facts.stacked else to_grey(image.pixels)


def to_grey(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pixels (C, *spatial), grey or in colour, as grey (*spatial)."""
    return pixels[0] if pixels.shape[0] < 3 else np.tensordot(LUMA, pixels[:3], axes=1)


def image_affine(image: Image) -> NDArray[np.float64]:
    """Return the affine of the image's indices; the identity for a projection."""
    return np.eye(4) if image.affine is None else np.asarray(image.affine, dtype=np.float64)


def to_image_grid(heatmap: NDArray, prepared: PreparedImage, image: Image) -> NDArray[np.float32]:
    """Resample a map on the prepared grid (*size) to the grid of the Image (*spatial), linearly."""
    from scipy.ndimage import affine_transform

    dims = image.spatial_dims
    to_prepared = np.linalg.inv(prepared.affine) @ image_affine(image)
    shape = image.pixels.shape[1:]
    resampled = affine_transform(
        heatmap, to_prepared[:dims, :dims], to_prepared[:dims, 3], output_shape=shape, order=1, mode="nearest"
    )
    return resampled.astype(np.float32)


def _check_kind(image: Image, config: PreprocessingConfig) -> None:
    """Refuse an image with other axes, or that its own file calls something else than the model is for."""
    facts = image.facts
    if image.spatial_dims != len(config.size):
        kind = {2: "an image", 3: "a volume"}
        reason = f"is {kind[image.spatial_dims]}, the model takes {kind[len(config.size)]}"
        fix = f"use a recipe or a run for {kind[image.spatial_dims].split()[1]}s"
        raise ReadError("image-dimensions", reason, where=facts.source, fix=fix)
    for named, allowed, what in (
        (facts.modality, config.modalities, "modality"),
        (facts.body_part, config.body_parts, "body part"),
    ):
        if named and allowed is not None and named not in allowed:
            reason = f"is of another {what}: the model is for {', '.join(allowed)}"
            fix = "leave it out, or allow it by preprocessing.modalities or --any-modality"
            raise ReadError("image-modality", reason, where=facts.source, fix=fix)


def _check_channels(image: Image, config: PreprocessingConfig) -> None:
    """Refuse channels that are neither as many as the model takes, nor colour or grey that stands for it."""
    held = image.pixels.shape[0]
    colour_or_grey = {held, config.channels} <= {1, 3} and not config.volumes_as_channels
    if held == config.channels or (colour_or_grey and not image.facts.stacked):
        return
    reason = f"has {held} channel{'s' * (held > 1)}, the model takes {config.channels}"
    fix = f"leave it out, or train with preprocessing.channels={held}"
    raise ReadError("image-channels", reason, where=image.facts.source, fix=fix)


def _resample(tensor: "MetaTensor", image: Image, config: PreprocessingConfig) -> "MetaTensor":
    from monai import transforms

    if image.spatial_dims == 3:
        tensor = as_meta(transforms.Orientation(axcodes=config.orientation, labels=RAS_LABELS)(tensor))
    if config.spacing_mm is not None:
        return _to_spacing(tensor, image, config.spacing_mm)
    shape = _fitted_shape(tensor, image, config.size)
    shrinks = np.prod(shape) < np.prod(tensor.shape[1:])
    mode = "area" if shrinks else ("bilinear" if len(shape) == 2 else "trilinear")
    return as_meta(transforms.Resize(shape, mode=mode)(tensor))


def _to_spacing(tensor: "MetaTensor", image: Image, spacing_mm: tuple[float, ...]) -> "MetaTensor":
    from monai import transforms

    if image.affine is None and image.spacing_mm is None:
        reason = "has no pixel spacing, and the model resamples to one"
        fix = "use a recipe without spacing_mm"
        raise ReadError("image-spacing", reason, where=image.facts.source, fix=fix)
    extents = np.array(tensor.shape[1:]) * _grid_spacing(tensor, image) / spacing_mm
    if len(tensor) * float(np.prod(extents)) > LARGEST_GRID:
        reason = f"would have over {LARGEST_GRID:.0e} pixels at the model's spacing"
        raise ReadError("image-too-large", reason, where=image.facts.source, fix="check its pixel spacing")
    if image.affine is not None:
        return as_meta(transforms.Spacing(pixdim=spacing_mm, mode="bilinear", padding_mode="border")(tensor))
    shape = np.maximum(1, np.round(extents)).astype(int)
    return as_meta(transforms.Resize(tuple(shape), mode="bilinear")(tensor))


def _fitted_shape(tensor: "MetaTensor", image: Image, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest shape within `size` that keeps the proportions of rows and columns in mm.

    Where their spacing is unknown, the ratio of a pixel's sides counts, and otherwise pixels are square.
    """
    extents = np.array(tensor.shape[-2:]) * _grid_spacing(tensor, image)[-2:]
    scale = min(size[-2:] / extents)
    rows, columns = np.maximum(1, np.round(extents * scale)).astype(int)
    return (*size[:-2], int(rows), int(columns))


def _grid_spacing(tensor: "MetaTensor", image: Image) -> NDArray[np.float64]:
    if image.affine is not None:
        return np.linalg.norm(np.asarray(tensor.affine)[:3, :3], axis=0)
    return np.array(image.spacing_mm or (image.facts.pixel_aspect or 1.0, 1.0))


def _scale_intensity(tensor: "MetaTensor", image: Image, config: PreprocessingConfig) -> "MetaTensor":
    import torch
    from monai import transforms
    from monai.data import MetaTensor

    voi = image.facts.voi
    if config.intensity == "window" and voi is not None:
        return MetaTensor(torch.from_numpy(voi.apply(tensor.numpy())), affine=tensor.affine)
    if config.intensity == "range" and config.range is not None:
        return as_meta(transforms.ScaleIntensityRange(*config.range, 0.0, 1.0, clip=True)(tensor))
    scale = transforms.ScaleIntensityRangePercentiles(
        *config.percentiles, 0.0, 1.0, clip=True, channel_wise=image.facts.stacked
    )
    return as_meta(scale(tensor))


def as_meta(tensor: object) -> "MetaTensor":
    """Check that MONAI returned a MetaTensor, as it promises."""
    from monai.data import MetaTensor

    assert isinstance(tensor, MetaTensor)
    return tensor

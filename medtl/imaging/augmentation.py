"""PREPARED PIXELS -> random views by MONAI transforms, each repeatable from its seed alone."""

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from medtl.core.ids import derive_seed

if TYPE_CHECKING:  # torch and MONAI are imported where they are used: recipes need neither
    from torch import Tensor


class AugmentationConfig(BaseModel, extra="forbid", frozen=True):
    """How far a random view may differ from the image. All zero: no augmentation.

    rotate_degrees turns rows and columns; scale and translate are fractions of the size; flip swaps left and
    right (not for chest radiographs, where it moves the heart); gamma and noise change intensities.
    """

    rotate_degrees: float = Field(default=10.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, lt=1)
    translate: float = Field(default=0.05, ge=0, lt=1)
    flip: bool = False
    gamma: float = Field(default=0.2, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, lt=1)


class Augmentation:
    """Callable (pixels, seed, counters) -> a random view of pixels (C, *spatial) in [0, 1]."""

    def __init__(self, config: AugmentationConfig, size: tuple[int, ...]) -> None:
        from monai.transforms import Compose

        self._transform = Compose(_transforms(config, size))

    def __call__(self, pixels: "Tensor", seed: int, *counters: int | str) -> "Tensor":
        """Return the view for (seed, counters), always the same one."""
        from monai.utils import convert_to_tensor

        if not self._transform.transforms:
            return pixels
        self._transform.set_random_state(derive_seed(seed, "augment", *counters) % 2**32)
        # With metadata each operation of a network on it would call Python.
        view: Tensor = convert_to_tensor(self._transform(pixels), track_meta=False)
        return view.clamp(0.0, 1.0)


def _transforms(config: AugmentationConfig, size: tuple[int, ...]) -> list:
    from monai.transforms import RandAdjustContrast, RandAffine, RandFlip, RandGaussianNoise

    chosen: list = []
    rows_columns = size[-2:]
    if config.rotate_degrees or config.scale or config.translate:
        still = (0.0,) * (len(size) - 2)
        chosen.append(
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(config.rotate_degrees),
                scale_range=(*still, config.scale, config.scale),
                translate_range=(*still, *(config.translate * extent for extent in rows_columns)),
                padding_mode="zeros",
                cache_grid=True,
                spatial_size=size,
            )
        )
    if config.flip:
        chosen.append(RandFlip(prob=0.5, spatial_axis=len(size) - 1))
    if config.gamma:
        chosen.append(RandAdjustContrast(prob=1.0, gamma=(1 - config.gamma, 1 + config.gamma)))
    if config.noise:
        chosen.append(RandGaussianNoise(prob=0.5, std=config.noise))
    return chosen

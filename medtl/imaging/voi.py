"""The VOI transformation of a DICOM image: which values it is meant to be looked at in (PS3.3 C.11.2)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Window:
    """A window, in the units of the pixels, and the function that it stands for (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to grey levels in [0, 1], in the same shape."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                grey = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - self.centre) / self.width))
            return grey.astype(np.float32)
        half, width = (0.5, self.width - 1) if self.function == "LINEAR" else (0.0, self.width)
        if width <= 0:  # a LINEAR window of width 1 is a threshold
            return (values > self.centre - half).astype(np.float32)
        return np.clip((values - (self.centre - half)) / width + 0.5, 0, 1).astype(np.float32)

    def mirrored(self, ends: float) -> "Window":
        """Return the window of the values `ends - v`, which shows them as this one shows v, inverted."""
        return Window(ends - self.centre + (self.function == "LINEAR"), self.width, self.function)


@dataclass(frozen=True, eq=False)
class VoiTable:
    """A VOI LUT: grey levels float32 (n,) in [0, 1] of whole values from `first` on (PS3.3 C.11.2.1.1)."""

    first: float
    levels: NDArray[np.float32]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to grey levels; values beyond the table have those of its ends."""
        places = np.clip(np.rint(values - self.first), 0, len(self.levels) - 1)
        return self.levels[places.astype(np.int64)]

    def mirrored(self, ends: float) -> "VoiTable":
        """Return the table of the values `ends - v`, which shows them as this one shows v, inverted."""
        return VoiTable(ends - (self.first + len(self.levels) - 1), 1 - self.levels[::-1])


Voi = Window | VoiTable

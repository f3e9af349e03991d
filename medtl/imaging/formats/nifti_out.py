"""Write a map on the grid of a volume as NIfTI, for viewers that lay it over the volume."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medtl.imaging.storage import replacing


def write_volume(path: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write values (3 axes, in the order of an Image's) with its affine (RAS+ mm) as .nii.gz, atomically.

    The same content gives the same bytes. Raises OutputError output-unwritable.
    """
    content = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine).to_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))

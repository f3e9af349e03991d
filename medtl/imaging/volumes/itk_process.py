"""A process that reads headers of images with SimpleITK, until its standard input ends.

It answers with numbers: how many axes, components and which type of values, then size, spacing, origin and
direction of the axes.
"""

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from medtl.imaging.dicom.decoder_process import run


def read_header(_: bytes, path: str, image_io: str) -> NDArray:
    """Return what ITK makes of a header."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(path)
    reader.ReadImageInformation()
    kinds = (reader.GetDimension(), reader.GetNumberOfComponents(), reader.GetPixelIDValue())
    places = (reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    return np.array([*kinds, *(number for place in places for number in place)], dtype=np.float64)


if __name__ == "__main__":
    run(read_header, ())

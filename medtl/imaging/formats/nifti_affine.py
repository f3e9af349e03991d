"""Where a NIfTI volume lies: its sform or qform, and what is refused of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from medtl.errors import ReadError

Header = Nifti1Header | Nifti2Header

# How far apart sform and qform may put a corner of the volume.
CONFLICT_MM = 1.0
# Length of the spatial unit in mm (xyzt_units); a file that does not say means millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def spatial_affine(header: Header, shape: Sequence[int], path: Path) -> NDArray[np.float64]:
    """Return the affine (4, 4) in RAS+ mm of a volume: its sform where that has a code, else its qform.

    The order is that of nifti1.h, methods 3 and 2. Its method 1, sizes without a place, is refused; so are
    two forms that disagree, though the standard lets them name two spaces: nobody says which one is meant.
    Raises ReadError nifti-affine, nifti-header.
    """
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        found = [affine for affine in (_sform(header), _qform(header, path)) if affine is not None]
        if not found:
            reason = "has neither sform nor qform: where it lies is unknown"
            raise ReadError("nifti-affine", reason, where=path, fix="set its sform")
        scale = UNITS_MM.get(int(header["xyzt_units"]) & 7)
        if scale is None:
            reason = "has an unknown unit of length"
            raise ReadError("nifti-header", reason, where=path, fix="write it in millimetres")
        scaled = [np.diag([scale, scale, scale, 1.0]) @ affine for affine in found]
        for affine in scaled:
            _check_regular(affine, path)
        apart = _corner_distance(scaled[0], scaled[-1], shape)
    if not apart <= CONFLICT_MM:
        reason = f"sform and qform put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    return scaled[0]


def _sform(header: Header) -> NDArray[np.float64] | None:
    return np.asarray(header.get_sform(), np.float64) if int(header["sform_code"]) > 0 else None


def _qform(header: Header, path: Path) -> NDArray[np.float64] | None:
    if int(header["qform_code"]) <= 0:
        return None
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # qfac: nifti1.h, "we take qfac=1"
    try:
        return np.asarray(header.get_qform(), np.float64)
    except Exception as error:  # nibabel raises several kinds for quaternions that are none
        fix = "correct it, or set its code to 0 beside an sform"
        raise ReadError("nifti-affine", "has an invalid qform", where=path, fix=fix) from error


def _check_regular(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that is not finite or flattens the volume."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0:
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
        if volume > 1e-3:
            return
    raise ReadError("nifti-affine", "has a singular affine", where=path, fix="correct its sform or qform")


def _corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Return how far apart two affines put the corners of a volume, at most."""
    i, j, k = (extent - 1 for extent in shape)
    corners = np.array([(x, y, z, 1) for x in (0, i) for y in (0, j) for z in (0, k)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())

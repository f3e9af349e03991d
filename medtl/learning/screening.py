"""What a checkpoint keeps of its training images as plain numbers: what they were, and how near is near."""

from pydantic import BaseModel, ConfigDict

# The name of the checkpoint's tensor file that belongs to it.
TENSORS = "screening"


class Screening(BaseModel):
    """Limits within which an image is like the training images; what they did not say is not judged.

    threshold: the distance of pooled features that a share `quantile` of the validation images keeps below.
    samples: how many training images it is measured from. modalities, body_parts: DICOM's terms for them.
    extents_mm: the smallest and largest extent of DICOM images along each of their axes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float
    quantile: float
    samples: int
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    extents_mm: tuple[tuple[float, float], ...] = ()

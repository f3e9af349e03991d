"""ITEM OF A SEQUENCE -> flat header: its elements by the keywords that a file with one plane has for them."""

from pydicom import Dataset
from pydicom.tag import Tag

from medtl.imaging.dicom.elements import Header, values_of
from medtl.imaging.dicom.instance import KEYWORDS_BY_TAG

# What enhanced images call an element of classic ones.
ENHANCED_NAMES = {
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameType": "ImageType",
    "InversionTimes": "InversionTime",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
NAMES_BY_TAG = KEYWORDS_BY_TAG | {Tag(enhanced): classic for enhanced, classic in ENHANCED_NAMES.items()}


def flatten(item: Dataset) -> Header:
    """Return the elements of an item, and of the first item of each sequence that is nested in it."""
    header: Header = {}
    for tag in item.keys():  # noqa: SIM118 a Dataset iterates over its elements
        if tag in NAMES_BY_TAG:
            header[NAMES_BY_TAG[tag]] = values_of(item, tag)
        elif not tag.is_private and item[tag].VR == "SQ":
            for nested in item[tag].value[:1]:
                header |= flatten(nested)
    return header

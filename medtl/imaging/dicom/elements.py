"""BYTES OF A HEADER -> plain Python values: the elements that an Instance is made of."""

import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom import Sequence as Items
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from medtl.errors import ReadError

FRAME_GROUP_KEYWORDS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

# Value representations whose bytes are text, and those of numbers, with their code in struct.
TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI"})
NUMBER_CODES = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}

# Empty ones have no value; any other empty text is one empty string, as pydicom has it.
NUMBER_TEXT_VRS = frozenset({"DS", "IS"})
Values = tuple[str | int | float, ...]
Header = dict[str, Values]

# Their messages quote values of the file, and go to stderr where nobody set up logging.
for name in ("pydicom", "pylibjpeg", "openjpeg"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def values_of(dataset: Dataset, tag: BaseTag) -> Values:
    """Return the values of one element; a sequence counts its items."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value is not None:
        kind = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag)
        values = decoded_values(element.value, kind, element.is_little_endian)
        if values is not None:
            return values
    value = dataset[tag].value
    if isinstance(value, Items):
        return (len(value),)
    return tuple(value) if isinstance(value, MultiValue) else () if value is None else (value,)


def decoded_values(content: bytes, kind: str, little_endian: bool = True) -> Values | None:
    """Return the values in the bytes of an element; None where its value representation is not simple.

    Text is read as Latin-1 whatever the character set: what is not ASCII here is hashed, and never shown.
    """
    if kind in TEXT_VRS:
        if not content and kind in NUMBER_TEXT_VRS:
            return ()
        return tuple(part.strip(" \0") for part in content.decode("latin-1").split("\\"))
    order, code = "<" if little_endian else ">", NUMBER_CODES.get(kind)
    if code is None or len(content) % struct.calcsize(order + code):
        return None
    return tuple(value for (value,) in struct.iter_unpack(order + code, content))


@contextmanager
def reporting_malformed(
    path: Path,
    code: str = "dicom-header",
    what: str = "a header that cannot be parsed",
    fix: str = "export it again from its source",
) -> Iterator[None]:
    """Turn whatever pydicom raises into a ReadError, which quotes nothing of the file."""
    try:
        yield
    except ReadError:
        raise
    except Exception as error:  # pydicom raises nearly anything on malformed bytes, and reads values lazily
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk failed, not the content
        raise ReadError(code, f"has {what} ({type(error).__name__})", where=path, fix=fix) from error


def silence_warnings() -> None:
    """Keep pydicom from quoting a header in its warnings, whatever filters another thread has restored."""
    module = re.compile(r"pydicom(\.|$)")
    if not warnings.filters or warnings.filters[0][3] != module:  # to set it again leaves a gap for others
        warnings.filterwarnings("ignore", module=module.pattern)

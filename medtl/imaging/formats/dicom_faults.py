"""Turn whatever pydicom raises on malformed bytes into a refusal, and keep it quiet.

Values are quoted nowhere: neither in errors nor in logs, since any element may name the patient.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom

from medtl.errors import ReadError

# Their own messages quote values of the file, and go to stderr where nobody set up logging.
for name in ("pydicom", "pylibjpeg", "openjpeg"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

PYDICOM_MODULES = r"pydicom(\.|$)"


@contextmanager
def reporting_malformed(path: Path) -> Iterator[None]:
    """Turn whatever parsing raises into ReadError dicom-header; what the header held is not quoted."""
    try:
        yield
    except ReadError:
        raise
    except (
        Exception
    ) as error:  # pydicom raises nearly anything on malformed bytes, and values are read lazily
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the content
        reason = f"has a header that cannot be parsed ({type(error).__name__})"
        raise ReadError("dicom-header", reason, where=path, fix="export it again from its source") from error


def truncated(path: Path) -> ReadError:
    """Return the refusal of a file that ends before its pixel data do."""
    fix = "copy it again from its source"
    return ReadError("dicom-truncated", "ends before its pixel data do", where=path, fix=fix)


def silence_warnings() -> None:
    """Keep pydicom from warning of what a header holds."""
    # Set anew where another filter stands first: catch_warnings is not safe between threads.
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[3] is None or getattr(first[3], "pattern", "") != PYDICOM_MODULES:
        warnings.filterwarnings("ignore", module=PYDICOM_MODULES)

"""Which columns of a label table may go into results, and which may identify a patient.

Attributes form subgroups on pages that others read, and are stored in prepared datasets. A column is held
back by its name, by values that look like dates, UIDs or addresses, and where most patients have a text of
their own.
"""

import re
from collections.abc import Sequence

from medtl.data.labels import compared_name
from medtl.data.task import Sample

# Columns, as compared_name returns them, that identify a patient.
IDENTIFYING = frozenset(
    {
        *("name", "firstname", "lastname", "birthdate", "dateofbirth", "dob", "address", "phone", "email"),
        *("accession", "accessionnumber", "nhsnumber", "ssn", "socialsecuritynumber", "file", "filename"),
    }
)
# Dates of any usual order, UIDs, mail addresses.
TELLING = re.compile(r"\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{4}|(\d+\.){4,}\d+|\S+@\S+\.\S+")
# Of at most five digits before the point: longer ones are dates, record or telephone numbers.
MEASUREMENT = re.compile(r"[-+]?\d{1,5}([.,]\d+)?([eE][-+]?\d+)?\s*[YMWD]?", re.IGNORECASE)


def attribute_names(samples: Sequence[Sample]) -> list[str]:
    """Return the names of all attributes, in the order of the table."""
    return list(dict.fromkeys(name for sample in samples for name in sample.attributes))


def identifying_attributes(samples: Sequence[Sample]) -> list[str]:
    """Return the attributes that may identify a patient."""
    return [name for name in attribute_names(samples) if _identifies(name, samples)]


def _identifies(name: str, samples: Sequence[Sample]) -> bool:
    if compared_name(name) in IDENTIFYING:
        return True
    stated = {(one.patient_id, value.strip()) for one in samples if (value := one.attributes.get(name, ""))}
    if any(TELLING.search(value) for _, value in stated):
        return True
    texts = {(patient, value) for patient, value in stated if not MEASUREMENT.fullmatch(value)}
    patients = {patient for patient, _ in texts}
    # A site or a device is shared by many; two patients of two sites say nothing yet.
    return len(patients) > 2 and 3 * len({value for _, value in texts}) > 2 * len(patients)

"""Columns that may say who a patient is are held back; what patients share is kept."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from medtl.data.attributes import identifying_attributes
from medtl.data.task import Sample
from medtl.imaging.series import Series


def held_back(name: str, values: Sequence[str], images: int = 1) -> bool:
    """Say whether a column is held back that has these values, one a patient."""
    samples = [
        Sample(f"s{row}-{image}", Series(Path(f"{row}"), (), "raster"), f"p{row}", attributes={name: value})
        for row, value in enumerate(values)
        for image in range(images)
    ]
    return identifying_attributes(samples) == [name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Date of birth", ["", "", ""]),
        ("remark", ["Mrs Kim, room 3", "", "", "fell at home", "referred by Dr Lee"]),
        ("number", ["1234567", "1234568", "1234569"]),
        ("seen", ["11.9.2001"] * 9),
        ("scanned", ["2001-09-11 10:00", "", ""]),
        ("uid", ["1.2.826.0.1.3680043.2"] * 9),
        ("contact", ["kim@example.org", "", "", ""]),
    ],
)
def test_a_column_that_may_name_patients_is_held_back(name: str, values: list[str]) -> None:
    assert held_back(name, values) and held_back(name, values, images=4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("site", ["north", "south"]),
        ("scanner", ["A", "A", "B", "B", "C", ""]),
        ("age", ["045Y", "46Y", "047Y", "6M"]),
        ("weight_kg", ["70.5", "61.25", "88,0", "5e1"]),
        ("tesla", ["1.5", "3", "1.5"]),
        ("note", ["", "", ""]),
    ],
)
def test_what_patients_share_or_measure_is_kept(name: str, values: list[str]) -> None:
    assert not held_back(name, values)

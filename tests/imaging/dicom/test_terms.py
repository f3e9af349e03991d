"""What of a header may be shown: terms of the standard, never what somebody typed."""

import pytest

from medtl.imaging.dicom import terms
from medtl.imaging.rasters.tiff import PHOTOMETRICS


@pytest.mark.parametrize("text", ["CHEST", "C SPINE", "L5-S1", "ABD_PELV", "LOWER EXTREMITY", ""])
def test_body_parts_of_the_standard_are_shown(text: str) -> None:
    assert terms.shown_body_part(text) == text


@pytest.mark.parametrize("text", ["MR KIM", "CHEST KIM", "L 19771231", "chest", "CHEST\x1b[2J", "L" * 17])
def test_what_may_be_a_name_or_a_date_is_not(text: str) -> None:
    for show in (terms.shown_body_part, terms.shown_view, terms.shown_modality, terms.shown_photometric):
        assert show(text) == terms.NOT_SHOWN


def test_views_modalities_and_photometric_interpretations_are_shown() -> None:
    assert (terms.shown_view("PA"), terms.shown_view("LEFT LATERAL")) == ("PA", "LEFT LATERAL")
    assert (terms.shown_modality("MR"), terms.shown_photometric("YBR_FULL_422")) == ("MR", "YBR_FULL_422")
    assert [terms.shown_photometric(name) for name in PHOTOMETRICS.values()] == [*PHOTOMETRICS.values()]

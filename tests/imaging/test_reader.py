"""read_images: the one call that a script needs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.reader import read_images


def test_a_file_a_folder_and_a_list_give_the_same_image(make_series: Callable) -> None:
    paths = make_series()
    folder = paths[0].parent
    by_folder, by_list, by_text = (read_images(source)[0] for source in (folder, paths, str(folder)))
    np.testing.assert_array_equal(by_folder.pixels, by_list.pixels)
    np.testing.assert_array_equal(by_folder.pixels, by_text.pixels)
    assert by_folder.facts == by_list.facts


def test_the_first_refusal_is_raised(make_radiograph: Callable, tmp_path: Path) -> None:
    make_radiograph(name="in/a.dcm")
    make_radiograph(name="in/b.dcm", NumberOfFrames=3)
    with pytest.raises(ReadError) as caught:
        read_images(tmp_path / "in")
    assert caught.value.code == "dicom-multiframe"


def test_refusals_are_collected_and_the_rest_is_read(make_radiograph: Callable, tmp_path: Path) -> None:
    for number in range(5):
        make_radiograph(name=f"in/{number}.dcm")
    (tmp_path / "in" / "1.dcm").write_bytes(b"")
    damaged = tmp_path / "in" / "3.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    refusals: list[ReadError] = []
    images = read_images(tmp_path / "in", refusals=refusals)
    assert [Path(image.facts.source).name for image in images] == ["0.dcm", "2.dcm", "4.dcm"]
    assert [error.code for error in refusals] == ["file-empty", "dicom-truncated"]


def test_a_missing_source_is_raised_even_when_refusals_are_collected(tmp_path: Path) -> None:
    with pytest.raises(ReadError):
        read_images(tmp_path / "absent", refusals=[])


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'pydicom', 'nibabel', 'torch', 'PIL'} & set(sys.modules)"
    code = f"import sys, medtl.imaging; sys.exit(repr({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Scanning and reading: which files are images, which series they form, what is refused and what is read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.errors import ReadError
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import pattern, refusal
from tests.waiting import PATIENCE

BASIC_TEXT_REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def test_the_formats_of_a_mixed_folder_are_recognised_by_content(
    make_series: Callable,
    make_radiograph: Callable,
    make_nifti: Callable,
    make_archive: Callable,
    tmp_path: Path,
) -> None:
    make_series(folder="study/mr")
    make_radiograph(name="study/cr")
    make_nifti(name="study/volume.nii.gz")
    make_archive(name="study/small.npz")
    (tmp_path / "study" / "README.txt").write_text("notes")
    found = scan(tmp_path / "study")
    assert [series.format for series in found.series] == ["dicom", "dicom", *["medmnist"] * 5, "nifti"]
    assert (found.refusals, found.skipped) == ((), 1)


def test_the_order_of_files_does_not_matter(make_series: Callable) -> None:
    paths = make_series(instances=6)
    assert scan(paths) == scan(paths[::-1]) == scan(paths[0].parent)
    assert scan(paths).series[0].files == tuple(paths)


def test_hidden_files_and_folders_are_left_out(make_radiograph: Callable, tmp_path: Path) -> None:
    make_radiograph(name="in/a.dcm")
    make_radiograph(name="in/.b.dcm")
    make_radiograph(name="in/.cache/c.dcm")
    assert [series.path.name for series in scan(tmp_path / "in").series] == ["a.dcm"]


def test_links_that_lead_out_of_the_folder_are_not_followed(
    make_radiograph: Callable, tmp_path: Path
) -> None:
    outside = make_radiograph(name="out/secret.dcm")
    make_radiograph(name="in/a.dcm")
    (tmp_path / "in" / "link.dcm").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)
    (tmp_path / "in" / "nowhere.dcm").symlink_to(tmp_path / "absent")
    found = scan(tmp_path / "in")
    assert [series.path.name for series in found.series] == ["a.dcm"] and found.refusals == ()
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert len(scan(tmp_path / "linked").series) == 1


CONTENTS = {
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "program": b"\x7fELF" + b"\0" * 200,
    "random": b"\x01\x02\x03" * 100,
    "empty": b"",
    "gzip of text": b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.dcm", "A.PNG", "a.jpeg", "a.npz"])
def test_other_content_under_an_image_name_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path)
    assert error.code == ("file-unknown" if content else "file-empty")
    assert error.where == str(tmp_path / name)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_other_content_under_another_name_is_counted_and_refused_only_when_named(
    make_radiograph: Callable, tmp_path: Path, content: bytes
) -> None:
    make_radiograph(name="in/a.dcm")
    (tmp_path / "in" / "notes.txt").write_bytes(content)
    found = scan(tmp_path / "in")
    assert (len(found.series), found.refusals, found.skipped) == (1, (), 1)
    assert refusal(tmp_path / "in" / "notes.txt").code in ("file-unknown", "file-empty")


def test_an_empty_file_named_like_its_neighbours_is_refused(
    make_radiograph: Callable, tmp_path: Path
) -> None:
    make_radiograph(name="in/IM0001")
    (tmp_path / "in" / "IM0002").write_bytes(b"")
    assert refusal(tmp_path / "in").code == "file-empty"


def test_pipes_and_devices_are_never_opened(make_radiograph: Callable, tmp_path: Path) -> None:
    make_radiograph(name="in/a.dcm")
    os.mkfifo(tmp_path / "in" / "pipe.dcm")
    os.mkfifo(tmp_path / "in" / "pipe")
    found = scan(tmp_path / "in")
    assert [error.code for error in found.refusals] == ["file-unknown"]
    assert (len(found.series), found.skipped) == (1, 1)
    assert refusal(Path("/dev/zero")).code == "file-unknown"


def test_a_file_without_permission_is_refused(
    make_radiograph: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_radiograph(name="in/a.dcm")
    locked = make_radiograph(name="in/b.dcm")
    real = Path.open

    def guarded(self: Path, *args: object, **options: object) -> object:
        if self == locked:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", guarded)
    error = refusal(tmp_path / "in")
    assert (error.code, error.where) == ("file-unreadable", str(locked))


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError) as caught:
        scan(tmp_path / "absent")
    assert caught.value.code == "file-missing"
    (tmp_path / "README").write_text("nothing here")
    for source in (tmp_path, []):
        with pytest.raises(ReadError) as caught:
            scan(source)
        assert caught.value.code == "folder-empty"


def test_a_bad_volume_of_another_format_leaves_a_series_beside_it_alone(
    make_series: Callable, tmp_path: Path
) -> None:
    folder = make_series()[0].parent
    (folder / "mask.nii").write_bytes(b"<html>")
    found = scan(folder)
    assert len(found.series) == 1 and [Path(error.where).name for error in found.refusals] == ["mask.nii"]


def test_hundreds_of_files_are_scanned_by_their_headers(make_radiograph: Callable, tmp_path: Path) -> None:
    data = make_radiograph(pattern(8, 8), name="in/0.dcm", SOPInstanceUID=None).read_bytes()
    for number in range(1, 300):
        (tmp_path / "in" / f"{number}.dcm").write_bytes(data)
    assert len(scan(tmp_path / "in").series) == 300


def test_skipped_files_are_counted_by_kind(
    make_radiograph: Callable[..., Path], make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    image = make_radiograph(name="cr/a.dcm")
    (tmp_path / "cr/copy.dcm").write_bytes(image.read_bytes())
    make_radiograph(name="cr/scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    make_radiograph(name="cr/report.dcm", SOPClassUID=BASIC_TEXT_REPORT)
    make_series(folder="mr")
    for name in ("a.txt", "b.TXT", "README"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "empty.log").touch()
    found = scan(tmp_path)
    assert found.left_out == {
        "files of other formats (.txt)": 2,
        "files of other formats": 1,
        "localizers": 1,
        "DICOM objects other than images (Basic Text SR)": 1,
        "exact copies of other files": 1,
        "empty files": 1,
    }
    assert found.skipped == 7


def test_slices_of_a_refused_series_are_not_called_skipped(
    make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    paths = make_series(instances=6)
    paths[2].unlink()
    (tmp_path / "mr/notes.txt").write_text("no image")
    found = scan(tmp_path)
    assert [error.code for error in found.refusals] == ["series-gap"]
    assert found.left_out == {"files of other formats (.txt)": 1}


def test_a_damaged_slice_is_not_called_skipped(
    make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    paths = make_series(instances=4)
    paths[1].write_bytes(b"")
    found = scan(tmp_path)
    assert found.refusals
    assert found.left_out == {}


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


HEAVY = {"torch", "monai", "pandas", "scipy", "pydicom", "gdcm", "nibabel", "PIL"}


def loaded_after(code: str) -> set[str]:
    """Return which of HEAVY a fresh process has imported after some code."""
    code = f"import sys\n{code}\nprint(*{HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=PATIENCE)
    return set(done.stdout.decode().split())


def test_importing_the_reader_loads_no_library_of_a_format_and_none_of_training() -> None:
    assert loaded_after("import medtl.imaging.reader") == set()


def test_the_library_of_a_format_is_loaded_with_its_first_file(
    make_radiograph: Callable, make_nifti: Callable, tmp_path: Path
) -> None:
    PillowImage.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    read = "from medtl.imaging.reader import read_images; assert len(read_images({!r})) == 1"
    assert loaded_after(read.format(str(tmp_path / "a.png"))) == {"PIL"}
    after_dicom = loaded_after(read.format(str(make_radiograph())))
    assert "pydicom" in after_dicom and not {"torch", "monai", "pandas", "nibabel"} & after_dicom
    after_nifti = loaded_after(read.format(str(make_nifti())))
    assert "nibabel" in after_nifti and not {"torch", "monai", "pandas"} & after_nifti

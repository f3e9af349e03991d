"""Zip archives and gzip streams of DICOM are read as folders and files are, or refused by name."""

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from medtl.data.manifest import load_manifest
from medtl.data.naming import Folder, NoSeriesError, source_name
from medtl.data.task import TaskConfig
from medtl.errors import ReadError
from medtl.imaging import reader
from medtl.imaging.containers import open_file
from medtl.imaging.dicom.patient import read_sources
from medtl.imaging.reader import read_images, read_series, scan
from tests.imaging.conftest import build_dataset, pattern, refusal, save

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def pack(path: Path, members: Mapping[str, bytes], method: int = DEFLATED) -> Path:
    """Write a zip archive of members by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def slices(make_series: Callable[..., list[Path]]) -> dict[str, bytes]:
    """Return the files of a series of four slices, by name."""
    return {path.name: path.read_bytes() for path in make_series(instances=4, folder="loose/mr")}


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("folder", ["", "study/mr/"])
def test_a_zip_archive_is_read_as_the_folder_that_was_packed(
    slices: dict[str, bytes], tmp_path: Path, method: int, folder: str
) -> None:
    archive = pack(tmp_path / "in/study.zip", {folder + name: data for name, data in slices.items()}, method)
    (packed,) = read_images(tmp_path / "in")
    (loose,) = read_images(tmp_path / "loose")
    np.testing.assert_array_equal(packed.pixels, loose.pixels)
    np.testing.assert_array_equal(packed.affine, loose.affine)
    assert packed.facts.sha256 == loose.facts.sha256
    assert packed.facts.source == str(archive / folder)
    (by_name,) = read_images(archive)
    np.testing.assert_array_equal(by_name.pixels, loose.pixels)


def test_nothing_is_unpacked(
    slices: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "in/study.zip", slices)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    assert len(read_images(tmp_path / "in")) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_archives_in_a_folder_are_studies_of_their_own(make_radiograph: Callable, tmp_path: Path) -> None:
    for number in range(3):
        data = make_radiograph(pattern(6, 5, seed=number), SOPInstanceUID=f"1.2.{number}").read_bytes()
        pack(tmp_path / f"in/{number}.zip", {"IM1": data, "report.pdf": b"%PDF-1.4", "notes.txt": b"notes"})
    found = scan(tmp_path / "in")
    names = [source_name(series, tmp_path / "in") for series in found.series]
    assert names == ["0.zip/IM1", "1.zip/IM1", "2.zip/IM1"] and found.refusals == ()
    assert found.left_out == {"files of other formats (a PDF)": 3, "files of other formats (.txt)": 3}
    for number, series in enumerate(found.series):
        np.testing.assert_array_equal(read_series(series).pixels[0], pattern(6, 5, seed=number))


def test_compressed_pixels_and_headers_of_pydicom_are_read_from_an_archive(
    make_radiograph: Callable, tmp_path: Path
) -> None:
    from pydicom.uid import JPEG2000Lossless

    pixels = pattern(64, 64)
    packed = make_radiograph(pixels, syntax=JPEG2000Lossless).read_bytes()
    bare = make_radiograph(pixels, SOPInstanceUID="1.2.3").read_bytes()[132:]  # no preamble
    pack(tmp_path / "in/a.zip", {"packed.dcm": packed, "bare.dcm": bare})
    for image in read_images(tmp_path / "in"):
        np.testing.assert_array_equal(image.pixels[0], pixels)


def test_other_images_beside_dicom_in_an_archive_are_refused_each(
    slices: dict[str, bytes], tmp_path: Path
) -> None:
    others = {"a.png": b"\x89PNG\r\n\x1a\n", "b.nii.gz": b"1" * 400, "labels.csv": b"path,label\n"}
    found = scan(pack(tmp_path / "study.zip", slices | others))
    assert len(found.series) == 1 and found.left_out == {"files of other formats (.csv)": 1}
    assert [(error.code, Path(error.where).name) for error in found.refusals] == [
        ("file-unknown", "a.png"),
        ("file-unknown", "b.nii.gz"),
    ]
    assert all("only DICOM" in error.reason and "unpack" in error.fix for error in found.refusals)


def test_gzip_files_in_an_archive_are_read(slices: dict[str, bytes], tmp_path: Path) -> None:
    packed = {f"{name}.gz": gzip.compress(data) for name, data in slices.items()}
    (image,) = read_images(pack(tmp_path / "study.zip", packed))
    np.testing.assert_array_equal(image.pixels, read_images(tmp_path / "loose")[0].pixels)


def test_an_archive_that_is_gone_is_counted(
    slices: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "in/study.zip", slices)
    real = reader.other_kind

    def late(path: Path) -> str:
        archive.unlink()
        return real(path)

    monkeypatch.setattr(reader, "other_kind", late)
    with pytest.raises(ReadError) as caught:
        scan(tmp_path / "in")
    assert caught.value.reason == "holds no readable image (files that are gone: 1)"


def test_a_link_in_an_archive_is_counted_and_not_followed(slices: dict[str, bytes], tmp_path: Path) -> None:
    archive = pack(tmp_path / "study.zip", slices)
    with zipfile.ZipFile(archive, "a") as opened:
        link = zipfile.ZipInfo("mr/link.dcm")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
    found = scan(archive)
    assert (len(found.series), found.refusals) == (1, ())
    assert found.left_out == {"links in zip archives": 1}


def test_hidden_members_and_those_of_macos_are_left_out(slices: dict[str, bytes], tmp_path: Path) -> None:
    extra = {f"__MACOSX/._{name}": b"\0\5\x16\7" * 9 for name in slices} | {".DS_Store": b"\0\0\0\1Bud1"}
    found = scan(pack(tmp_path / "study.zip", slices | extra))
    assert (len(found.series), found.refusals, found.left_out) == (1, (), {})


class OneWay(io.BytesIO):
    """A stream that cannot be sought: sizes then follow the members."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError

    def tell(self) -> int:
        raise OSError


def test_an_archive_that_was_streamed_is_read(slices: dict[str, bytes], tmp_path: Path) -> None:
    stream = OneWay()
    with zipfile.ZipFile(stream, "w", DEFLATED) as archive:
        for name, data in slices.items():
            archive.writestr(name, data)
    (tmp_path / "a.zip").write_bytes(stream.getvalue())
    assert len(read_images(tmp_path / "a.zip")) == 1


def test_an_archive_with_the_end_of_a_very_large_one_is_read(
    slices: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", b"")
        for name, data in slices.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    found = scan(tmp_path / "a.zip")
    assert b"PK\6\6" in (tmp_path / "a.zip").read_bytes()
    assert len(found.series) == 1 and found.left_out == {"empty files": 1}
    assert read_series(found.series[0]).pixels.shape == (1, 4, 6, 5)


def test_names_with_backslashes_are_folders(slices: dict[str, bytes], tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {f"mr/{name}": data for name, data in slices.items()}, STORED)
    archive.write_bytes(archive.read_bytes().replace(b"mr/", b"mr\\"))
    (series,) = scan(archive).series
    assert series.path == archive / "mr"
    assert read_series(series).pixels.shape == (1, 4, 6, 5)


def test_a_header_is_read_without_inflating_the_rest(tmp_path: Path) -> None:
    dataset = build_dataset(pattern(1024, 1024), "1.2.840.10008.5.1.4.1.1.1", BitsStored=12)
    data = save(dataset, tmp_path / "a.dcm").read_bytes()
    archive = pack(tmp_path / "a.zip", {"a.dcm": data})
    with open_file(archive / "a.dcm") as file:
        assert file.read(2**14) == data[: 2**14]
        assert len(file._content) < len(data) / 2  # type: ignore[attr-defined]
        assert file.seek(-4, os.SEEK_END) == len(data) - 4 and file.read() == data[-4:]


# What a table, a journal and a PACS ask of a member.


def test_rows_of_a_table_name_an_archive_or_a_member(make_radiograph: Callable, tmp_path: Path) -> None:
    rows = ["path,label"]
    for number in range(4):
        data = make_radiograph(pattern(6, 5, seed=number), SOPInstanceUID=f"1.2.{number}").read_bytes()
        pack(tmp_path / f"in/{number}.zip", {"IM1": data})
        rows.append(f"{number}.zip{'/IM1' if number % 2 else ''},{'ab'[number // 2]}")
    (tmp_path / "in/labels.csv").write_text("\n".join(rows))
    samples = load_manifest(tmp_path / "in", None, TaskConfig()).samples
    assert [sample.series.files[0].as_posix()[-9:] for sample in samples] == [
        f"{number}.zip/IM1" for number in range(4)
    ]


def test_a_path_that_is_not_in_the_archive_is_a_problem_of_its_row(
    slices: dict[str, bytes], tmp_path: Path
) -> None:
    archive = pack(tmp_path / "study.zip", slices)
    folder = Folder(tmp_path, scan(archive))
    with pytest.raises(NoSeriesError, match="does not exist"):
        folder.find_path("study.zip/other.dcm")
    with pytest.raises(NoSeriesError, match=r"name study\.zip"):
        folder.find_path(f"study.zip/{next(iter(slices))}")
    assert folder.find_path("study.zip").path == archive


def test_results_refer_to_instances_in_an_archive(slices: dict[str, bytes], tmp_path: Path) -> None:
    (series,) = scan(pack(tmp_path / "study.zip", slices)).series
    sources = read_sources(series)
    assert [one.path for one in sources] == list(series.files) and sources[0].header.PatientName


def test_an_archive_that_is_replaced_is_read_anew(slices: dict[str, bytes], tmp_path: Path) -> None:
    archive = pack(tmp_path / "study.zip", slices)
    (series,) = scan(archive).series
    pack(archive, {name: data[:-4] + b"\1\0\1\0" for name, data in slices.items()}, STORED)
    os.utime(archive, (1, 1))
    assert (read_series(series).pixels[0, :, -1, -2:] == 1).all()
    pack(archive, {"other": b"text"})
    os.utime(archive, (2, 2))
    with pytest.raises(ReadError) as caught:
        read_series(series)
    assert caught.value.code == "file-missing"


# Damage and harm


def corrupt(archive: Path, name: str, at: int = -20) -> Path:
    """Change a byte of a stored member."""
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(name)
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 30 + len(name) + info.compress_size + at] ^= 0xFF
    archive.write_bytes(data)
    return archive


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_a_member_whose_bytes_have_another_checksum_is_refused(
    make_radiograph: Callable, tmp_path: Path, method: int
) -> None:
    data = make_radiograph(pattern(200, 200)).read_bytes()
    archive = corrupt(pack(tmp_path / "in/a.zip", {"a.dcm": data}, method), "a.dcm", at=-900)
    error = refusal(tmp_path / "in")
    assert (error.code, error.where) == ("archive-damaged", str(archive / "a.dcm"))


def test_a_damaged_member_is_a_missing_slice(slices: dict[str, bytes], tmp_path: Path) -> None:
    names = list(slices)
    archive = pack(tmp_path / "in/a.zip", slices | {names[2]: slices[names[2]][:-30]})
    error = refusal(tmp_path / "in")
    assert (error.code, error.where) == ("dicom-truncated", str(archive))
    assert f"a slice may be missing: {names[2]}" in error.reason


def zip_with(tmp_path: Path, edit: Callable[[bytes], bytes], **members: bytes) -> Path:
    archive = pack(tmp_path / "in/a.zip", members or {"a.dcm": b"\0" * 200}, STORED)
    archive.write_bytes(edit(archive.read_bytes()))
    return archive


def flagged(data: bytes) -> bytes:
    """Say in the list of members that they are encrypted."""
    at = data.index(b"PK\1\2") + 8
    return data[:at] + struct.pack("<H", 1) + data[at + 2 :]


def renamed(name: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"canary-name.dcm", name.ljust(15, b"x"))


TWO = {"canary-name.dcm": b"1", "other-name1.dcm": b"2"}
HARMFUL: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "truncated": (lambda tmp: zip_with(tmp, lambda data: data[:-30]), "archive-damaged", "incomplete"),
    "encrypted": (lambda tmp: zip_with(tmp, flagged), "archive-packed", "encrypted"),
    "leading out": (
        lambda tmp: zip_with(tmp, renamed(b"../../secret.dc"), **{"canary-name.dcm": b"\0"}),
        "archive-packed",
        "leads out",
    ),
    "absolute": (
        lambda tmp: zip_with(tmp, renamed(b"/etc/secret.dcm"), **{"canary-name.dcm": b"\0"}),
        "archive-packed",
        "leads out",
    ),
    "on another drive": (
        lambda tmp: zip_with(tmp, renamed(b"C:\\x\\secret.dcm"), **{"canary-name.dcm": b"\0"}),
        "archive-packed",
        "leads out",
    ),
    "two of one name": (
        lambda tmp: zip_with(tmp, renamed(b"other-name1.dcm"), **TWO),
        "archive-packed",
        "of one name",
    ),
    "lzma": (
        lambda tmp: pack(tmp / "in/a.zip", {"a.dcm": b"\1" * 900}, zipfile.ZIP_LZMA),
        "archive-packed",
        "lzma",
    ),
    "nested": (
        lambda tmp: pack(tmp / "in/a.zip", {"inner.zip": pack(tmp / "b.zip", {"a": b"1"}).read_bytes()}),
        "archive-packed",
        "inside an archive",
    ),
    "of other images": (
        lambda tmp: pack(tmp / "in/a.zip", {"a.png": b"\x89PNG\r\n\x1a\n", "b.nii.gz": b"1", "c.png": b"2"}),
        "archive-packed",
        ".png files, and only DICOM",
    ),
}


@pytest.mark.parametrize(("build", "code", "says"), HARMFUL.values(), ids=HARMFUL)
def test_an_archive_that_is_not_read_exactly_is_refused_in_a_row(
    make_radiograph: Callable, tmp_path: Path, build: Callable[[Path], Path], code: str, says: str
) -> None:
    archive = build(tmp_path)
    error = refusal(tmp_path / "in")
    assert error.code == code and says in error.reason and error.where.startswith(str(archive))
    make_radiograph(name="in/cr.dcm")
    refusals: list[ReadError] = []
    assert len(read_images(tmp_path / "in", refusals=refusals)) == 1 and len(refusals) == 1


OTHERS = {
    "an Office document": {"[Content_Types].xml": b"<?xml", "word/document.xml": b"<?xml"},
    "a PyTorch file": {"archive/data.pkl": b"\x80\x02", "archive/data/0": b"\0"},
    "NumPy arrays": {"a.npy": b"\x93NUMPY", "b.npy": b"\x93NUMPY"},
    "a zip archive without images": {"a.txt": b"text"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_zip_archives_are_counted_as_what_they_are(
    make_radiograph: Callable, tmp_path: Path, kind: str
) -> None:
    make_radiograph(name="in/cr.dcm")
    archive = pack(tmp_path / "in/other", OTHERS[kind])
    found = scan(tmp_path / "in")
    assert (found.refusals, found.left_out) == ((), {f"files of other formats ({kind})": 1})
    assert kind in refusal(archive).reason


# gzip


def test_gzip_of_dicom_is_read(make_radiograph: Callable, tmp_path: Path) -> None:
    plain = make_radiograph()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.dcm.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "in/b").write_bytes(gzip.compress(make_radiograph(SOPInstanceUID="1.2").read_bytes()))
    found = scan(tmp_path / "in")
    assert [one.format for one in found.series] == ["dicom", "dicom"]
    for image in read_images(tmp_path / "in"):
        np.testing.assert_array_equal(image.pixels[0], pattern(12, 10))


def test_a_series_of_gzip_files_is_a_volume(slices: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in slices.items():
        (tmp_path / "in" / f"{name}.gz").write_bytes(gzip.compress(data))
    (packed,), (loose,) = read_images(tmp_path / "in"), read_images(tmp_path / "loose")
    np.testing.assert_array_equal(packed.pixels, loose.pixels)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-9],
    "another checksum": lambda data: data[:-8] + b"\0" * 8,
    "a changed byte": lambda data: data[:60] + b"\xff" + data[61:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_gzip_of_dicom_is_refused(
    make_radiograph: Callable, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    data = gzip.compress(make_radiograph(pattern(64, 64)).read_bytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.dcm.gz").write_bytes(damage(data))
    assert refusal(tmp_path / "in").code in ("archive-damaged", "file-unknown", "dicom-header")


def test_gzip_of_nifti_stays_nifti(make_nifti: Callable, tmp_path: Path) -> None:
    assert scan(make_nifti()).series[0].format == "nifti"


def test_a_zip_archive_in_memory_order_does_not_matter(slices: dict[str, bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in reversed(slices):
            archive.writestr(name, slices[name])
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + buffer.getvalue())  # self-extracting
    assert refusal(tmp_path / "a.zip").code == "file-unknown"
    (tmp_path / "b.zip").write_bytes(buffer.getvalue())
    assert len(read_images(tmp_path / "b.zip")) == 1

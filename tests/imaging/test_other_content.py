"""What a folder holds instead of images is named, from files that the libraries of each kind wrote."""

import bz2
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.errors import LINE_LIMIT, ReadError
from medtl.imaging.reader import scan
from tests.imaging.conftest import build_dataset, pattern, refusal, save

PICTURE = np.arange(64, dtype=np.uint8).reshape(8, 8)


def saved_by_pillow(kind: str, **options: bool) -> Callable[[Path], object]:
    return lambda path: PillowImage.fromarray(PICTURE).convert("RGB").save(path, kind, **options)


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["images"] = PICTURE


def parquet(path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"image": [PICTURE.tobytes()]}), path)


def matlab(path: Path) -> None:
    from scipy.io import savemat

    savemat(path, {"images": PICTURE})


def netcdf(path: Path) -> None:
    from scipy.io import netcdf_file

    with netcdf_file(path, "w") as file:
        file.createDimension("x", 8)


def jpeg_xl(path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path.write_bytes(imagecodecs.jpegxl_encode(PICTURE))


def tar(mode: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.dcm"), io.BytesIO())

    return write


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table images (id)")
    connection.close()


def office(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<?xml")


KINDS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    # name: (kind, how it is written, a word of what to do)
    "a.jp2": ("JPEG 2000", saved_by_pillow("JPEG2000"), "opj_decompress"),
    "a.j2k": ("JPEG 2000", saved_by_pillow("JPEG2000", no_jp2=True), "opj_decompress"),
    "a.jxl": ("JPEG XL", jpeg_xl, "djxl"),
    "a.jxr": ("JPEG XR", lambda path: path.write_bytes(b"II\xbc\x01" + bytes(99)), "JxrDecApp"),
    "a.pgm": ("PGM or PPM", saved_by_pillow("PPM"), "ImageMagick"),
    "a.exr": ("OpenEXR", lambda path: path.write_bytes(b"\x76\x2f\x31\x01" + bytes(99)), "ImageMagick"),
    "a.gif": ("GIF", saved_by_pillow("GIF"), "ImageMagick"),
    "a.heic": ("HEIC", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), "ImageMagick"),
    "a.avif": ("AVIF", lambda path: path.write_bytes(b"\0\0\0\x20ftypavif" + bytes(99)), "ImageMagick"),
    "a.mp4": ("a video", lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(99)), "ffmpeg"),
    "a.h5": ("HDF5", hdf5, "NIfTI or PNG"),
    "a.parquet": ("Parquet", parquet, "NIfTI or PNG"),
    "a.mat": ("a MATLAB file", matlab, "NIfTI or PNG"),
    "a.npy": ("a NumPy array", lambda path: np.save(path, PICTURE), "NIfTI or PNG"),
    "a.pkl": ("a Python pickle", lambda path: path.write_bytes(pickle.dumps(PICTURE)), "NIfTI or PNG"),
    "a.mnc": ("MINC or netCDF", netcdf, "nibabel"),
    "a.tar": ("a tar archive", tar("w"), "unpack"),
    "a.tar.gz": ("gzip of tar archive", tar("w:gz"), "unpack"),
    "a.tar.bz2": ("a bzip2 file", tar("w:bz2"), "unpack"),
    "a.nii.bz2": ("a bzip2 file", lambda path: path.write_bytes(bz2.compress(b"nii")), "unpack"),
    "a.nii.xz": ("an xz file", lambda path: path.write_bytes(lzma.compress(b"nii")), "unpack"),
    "a.7z": ("a 7z archive", lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99)), "unpack"),
    "a.sqlite": ("an SQLite database", database, "NIfTI or PNG"),
    "a.docx": ("an Office document", office, "remove"),
    "a.pdf": ("a PDF", lambda path: path.write_bytes(b"%PDF-1.7\n"), "images"),
    "a.par": (
        "Philips PAR/REC",
        lambda path: path.write_text("# === DATA DESCRIPTION FILE ====\n#\n"),
        "dcm2niix",
    ),
    "a.rec": ("Philips PAR/REC", lambda path: path.write_bytes(b"\1\2" * 99), "dcm2niix"),
    "P12345.7": ("a GE P-file", lambda path: path.write_bytes(b"\1\2" * 99), "DICOM"),
    "method": ("a Bruker ParaVision file", lambda path: path.write_text("##TITLE=Parameter\n"), "brkraw"),
    "2dseq": ("a Bruker ParaVision file", lambda path: path.write_bytes(b"\1\2" * 99), "brkraw"),
    "a.BRIK": ("AFNI", lambda path: path.write_bytes(b"\1\2" * 99), "3dAFNItoNIFTI"),
    "pointer": ("a Git LFS pointer", lambda path: path.write_text("version https://git-lfs.git"), "lfs"),
    "annexed": ("a git-annex pointer", lambda path: path.write_text("/annex/objects/SHA256E-s1--a"), "annex"),
    "page": ("an HTML page", lambda path: path.write_text("\n <HTML>404"), "remove"),
    "zeros": ("a file of zeros", lambda path: path.write_bytes(bytes(4096)), "copy"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_not_read_is_named_by_what_it_is(tmp_path: Path, name: str) -> None:
    kind, write, fix = KINDS[name]
    write(tmp_path / name)
    error = refusal(tmp_path / name)
    assert (error.code, error.reason) == ("file-unknown", f"is {kind}, which is not read")
    assert fix in error.fix
    with pytest.raises(ReadError) as caught:
        scan(tmp_path)
    assert caught.value.code == "folder-empty" and caught.value.fix == error.fix
    assert caught.value.reason == f"holds no readable image ({kind}: 1)"


@pytest.mark.parametrize("name", KINDS)
def test_it_is_counted_as_that_beside_images(make_radiograph: Callable, tmp_path: Path, name: str) -> None:
    kind, write, _ = KINDS[name]
    make_radiograph(name="in/a.dcm")
    write(tmp_path / "in" / name)
    found = scan(tmp_path / "in")
    assert (found.refusals, found.left_out) == ((), {f"files of other formats ({kind})": 1})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bm.txt", b"BMI,age\n21,40\n"),
        ("note", b"BZip and others"),
        ("latin", "Grüße\n".encode("latin-1")),
        ("table.csv", b"path,label\na,b\n"),
    ],
)
def test_text_is_text(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).reason.startswith("is text, not a DICOM, NIfTI,")


def test_a_folder_of_many_kinds_names_the_most_frequent(tmp_path: Path) -> None:
    for number, name in enumerate(("a.gif", "a.tar", "a.pdf", "a.npy", "page", "a.docx")):
        for copy in range(number + 1):
            (tmp_path / str(copy)).mkdir(exist_ok=True)
            KINDS[name][1](tmp_path / str(copy) / name)
    with pytest.raises(ReadError) as caught:
        scan(tmp_path)
    line = str(caught.value)
    assert "(an Office document: 6, an HTML page: 5, a NumPy array: 4, others: 6)" in line
    assert "name a folder of DICOM, NIfTI, PNG or JPEG" in line and len(line) <= LINE_LIMIT


def test_dicom_objects_without_pixels_are_named(tmp_path: Path) -> None:
    kinds = {
        "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR",
        "1.2.840.10008.5.1.4.1.1.104.1": "Encapsulated PDF",
        "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set",
        "1.2.840.10008.1.3.10": "Media Storage Directory",
    }
    for number, kind in enumerate(kinds):
        save(build_dataset(pattern(4, 4), kind, SOPClassUID=kind), tmp_path / f"{number}.dcm")
    with pytest.raises(ReadError) as caught:
        scan(tmp_path)
    named = [f"DICOM {kind}: 1" for kind in kinds.values()]
    assert caught.value.reason == f"holds no readable image ({', '.join(named[:3])}, others: 1)"


def test_gzip_of_what_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"%PDF-1.4"))
    assert refusal(tmp_path / "a.gz").reason.startswith("is gzip of PDF")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"text"))
    assert "gzip of something else" in refusal(tmp_path / "b.gz").reason
    (tmp_path / "c.gz").write_bytes(b"\x1f\x8b\x08" + b"\xff" * 40)
    assert "damaged gzip" in refusal(tmp_path / "c.gz").reason

"""CONTENT THAT IS NOT READ -> what it is, by its first bytes or else by its name, and what to do with it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from medtl.imaging.containers import GZIP_MAGIC, UNPACK, gunzipped_head

REPLACE = "replace or remove it"
TO_NIFTI = "convert it to NIfTI, for example with {}"
TO_PNG = "convert it to PNG, for example with {}"
SAVE_ARRAY = "save its images as NIfTI or PNG, or all of them in MedMNIST's layout"
FRAMES = "save the frames that are meant as PNG, for example with ffmpeg"
IMAGEMAGICK = TO_PNG.format("ImageMagick")
NIBABEL = TO_NIFTI.format("nibabel")


class Content(NamedTuple):
    """What content is, and what to do with it."""

    kind: str
    fix: str = REPLACE


UNKNOWN, TEXT = Content("unknown content"), Content("text")
ZEROS = Content("a file of zeros", "copy it again from its source")
TEXT_BYTES = re.compile(rb"[\t\n\r -~\x80-\xff]+")
DAMAGED_GZIP = Content("damaged gzip", "copy it again from its source")
OTHER_GZIP = Content("gzip of something else", "unpack it, if it holds an image")

# What follows the P of PBM, PGM, PPM and PAM files, and what follows that.
PNM_KINDS, BLANKS = (b"1", b"2", b"3", b"4", b"5", b"6", b"7"), (b"\n", b"\r", b" ", b"\t")

# How content begins: (offset, bytes, what it is), the longer ones first where one begins with another.
MAGICS: tuple[tuple[int, bytes, Content], ...] = (
    (0, b"version https://git-lfs", Content("a Git LFS pointer", "run `git lfs pull`")),
    (0, b"/annex/objects/", Content("a git-annex pointer", "run `git annex get`")),
    (0, b"%PDF", Content("a PDF", "name the images that it was made of")),
    (0, b"\x7fELF", Content("a program")),
    (0, b"MZ", Content("a program")),
    (0, b"PAR1", Content("Parquet", SAVE_ARRAY)),
    (0, b"\x89HDF\r\n\x1a\n", Content("HDF5", SAVE_ARRAY)),
    (0, b"MATLAB 5.0", Content("a MATLAB file", SAVE_ARRAY)),
    (0, b"MATLAB 7.3", Content("a MATLAB file", SAVE_ARRAY)),
    (0, b"\x93NUMPY", Content("a NumPy array", SAVE_ARRAY)),
    *((0, b"\x80" + bytes([version]), Content("a Python pickle", SAVE_ARRAY)) for version in (2, 3, 4, 5)),
    (0, b"CDF\x01", Content("MINC or netCDF", NIBABEL)),
    (0, b"CDF\x02", Content("MINC or netCDF", NIBABEL)),
    (0, b"MATRIX7", Content("ECAT", NIBABEL)),
    (0, b"# === DATA DESCRIPTION FILE", Content("Philips PAR/REC", TO_NIFTI.format("dcm2niix"))),
    (0, b"# vtk DataFile", Content("VTK", TO_NIFTI.format("3D Slicer"))),
    (0, b"!INTERFILE", Content("Interfile", TO_NIFTI.format("3D Slicer"))),
    (0, b"##TITLE=", Content("a Bruker ParaVision file", TO_NIFTI.format("brkraw"))),
    (0, b"\0\0\0\x0cjP  \r\n", Content("JPEG 2000", TO_PNG.format("opj_decompress"))),
    (0, b"\xff\x4f\xff\x51", Content("JPEG 2000", TO_PNG.format("opj_decompress"))),
    (0, b"\0\0\0\x0cJXL \r\n", Content("JPEG XL", TO_PNG.format("djxl"))),
    (0, b"\xff\x0a", Content("JPEG XL", TO_PNG.format("djxl"))),
    (0, b"II\xbc\x01", Content("JPEG XR", TO_PNG.format("JxrDecApp"))),
    *((4, b"ftypavi" + end, Content("AVIF", IMAGEMAGICK)) for end in (b"f", b"s")),
    *((4, b"ftyphei" + end, Content("HEIC", IMAGEMAGICK)) for end in (b"c", b"x", b"m", b"s")),
    *((4, b"ftyphev" + end, Content("HEIC", IMAGEMAGICK)) for end in (b"c", b"x", b"m", b"s")),
    *((4, b"ftypm" + end, Content("HEIC", IMAGEMAGICK)) for end in (b"if1", b"sf1")),
    *((0, b"P" + kind + end, Content("PGM or PPM", IMAGEMAGICK)) for kind in PNM_KINDS for end in BLANKS),
    (0, b"\x76\x2f\x31\x01", Content("OpenEXR", IMAGEMAGICK)),
    (0, b"GIF8", Content("GIF", IMAGEMAGICK)),
    (0, b"8BPS", Content("a Photoshop file", IMAGEMAGICK)),
    (4, b"ftyp", Content("a video", FRAMES)),
    (8, b"AVI ", Content("a video", FRAMES)),
    (0, b"\x1aE\xdf\xa3", Content("a video", FRAMES)),
    (0, b"\0\0\x01\xba", Content("a video", FRAMES)),
    (0, b"\0\0\x01\xb3", Content("a video", FRAMES)),
    (257, b"ustar", Content("a tar archive", UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Content("a 7z archive", UNPACK)),
    (0, b"Rar!", Content("a RAR archive", UNPACK)),
    (0, b"BZh", Content("a bzip2 file", UNPACK)),
    (0, b"\xfd7zXZ", Content("an xz file", UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Content("a zstd file", UNPACK)),
    (0, b"PK\x05\x06", Content("an empty zip archive")),
    (0, b"SQLite format 3", Content("an SQLite database", SAVE_ARRAY)),
)
# The same for text, whose case and leading blanks do not matter.
TEXT_MAGICS: tuple[tuple[int, bytes, Content], ...] = (
    (0, b"<!doctype", Content("an HTML page")),
    (0, b"<html", Content("an HTML page")),
    (0, b"<?xml", Content("XML")),
    (0, b"envi\n", Content("ENVI", TO_PNG.format("GDAL"))),
    (0, b"envi\r", Content("ENVI", TO_PNG.format("GDAL"))),
)
# By the end of the name, where the content has no magic.
SUFFIXES: dict[tuple[str, ...], Content] = {
    (".rec", ".par"): Content("Philips PAR/REC", TO_NIFTI.format("dcm2niix")),
    (".head", ".brik"): Content("AFNI", TO_NIFTI.format("3dAFNItoNIFTI")),
    (".img",): Content("a file of raw pixels", "name its header, the .hdr beside it"),
    (".mnc",): Content("MINC or netCDF", NIBABEL),
    (".mat",): Content("a MATLAB file", SAVE_ARRAY),
    (".raw", ".dat"): Content("raw data", TO_NIFTI.format("the software that wrote it")),
    (".pt", ".pth", ".ckpt", ".safetensors"): Content("a model or tensors", SAVE_ARRAY),
}
# Files without an ending that scanners write.
NAMES: tuple[tuple[re.Pattern[str], Content], ...] = (
    (re.compile(r"P\d{5}\.7"), Content("a GE P-file", "reconstruct it, and export DICOM")),
    (
        re.compile(r"2dseq|fid|ser|rawdata\.job\d"),
        Content("a Bruker ParaVision file", TO_NIFTI.format("brkraw")),
    ),
)


def describe(path: Path, head: bytes) -> Content:
    """Say what a file is that no format recognises, from its name and its first bytes."""
    if not head.strip(b"\0"):
        return ZEROS
    found = next(_matches(head, MAGICS), None) or next(_matches(head.lstrip().lower(), TEXT_MAGICS), None)
    found = found or _by_name(path.name)
    if found is None and head.startswith(GZIP_MAGIC):
        return _inside_gzip(head)
    return found or (TEXT if TEXT_BYTES.fullmatch(head) else UNKNOWN)


def _matches(head: bytes, magics: Iterable[tuple[int, bytes, Content]]) -> Iterator[Content]:
    return (content for offset, magic, content in magics if head.startswith(magic, offset))


def _inside_gzip(head: bytes) -> Content:
    inner = gunzipped_head(head)
    found = next(_matches(inner, MAGICS), None)
    if found is None:
        return OTHER_GZIP if inner else DAMAGED_GZIP
    return Content(f"gzip of {found.kind.removeprefix('a ')}", found.fix)


def _by_name(name: str) -> Content | None:
    for pattern, content in NAMES:
        if pattern.fullmatch(name):
            return content
    lower = name.lower()
    return next((content for ends, content in SUFFIXES.items() if lower.endswith(ends)), None)

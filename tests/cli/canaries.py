"""A labelled DICOM folder full of what must never leave it, and a search for that in whatever was written.

HEADER: words of the files' own elements; TABLE: of the label table; PLACE: of the names of files and folders.
"""

import base64
import gzip
import io
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR, keyword_dict

from tests.cli import jobs

HEADER = ("xqname", "xqtext", "xqprivate", "19771231", "112233.4455", "077y", "1.2.826.0.1.9911")
TABLE = ("xqcell", "xqpatient", "2003-04-05")
COLUMN = ("xqcolumn",)
PLACE = ("xqhome", "xqfolder", "xqfile", "19690720")
EVERY = (*HEADER, *TABLE, *COLUMN, *PLACE)

FILLED_VRS = frozenset({"PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "DA", "DT", "TM", "AS", "AE", "UI"})
# What reading needs as it is, or one by one.
SET_APART = re.compile(
    "SOPClassUID|SpecificCharacterSet|TransferSyntaxUID|PatientID|CodingScheme|DataSetTrailing"
)
VALUES = {
    "PN": "Xqname^Kim",
    "DA": "19771231",
    "DT": "19771231112233.4455",
    "TM": "112233.4455",
    "AS": "077Y",
    "UI": "1.2.826.0.1.9911.9",
}
TELLING = re.compile(
    "Study|Series|SOP|Patient|Accession|Physician|Operator|Institution|Date|Time|Protocol|UID"
)


def write_folder(root: Path, count: int = 24) -> Path:
    """Write radiographs, two a patient, and their labels.csv, below `root`; return their folder.

    Two more are cut off, one of them with a label.
    """
    folder = root / "Xqhome" / "Xqfolder^Kim 19690720"
    rows = []
    for row in range(count):
        kind = row // 2 % 2
        path = jobs.write_radiograph(folder / f"Xqfile-{row:03d}.dcm", row, kind)
        _fill(path, row)
        rows.append(
            {
                "path": path.name,
                "label": ("normal", "lesion")[kind],
                "patient_id": f"Xqpatient-{row // 2}",
                "name": f"Xqcell {row // 2}",
                "Xqcolumn": f"Xqcell {row // 2 % 12}",
                "seen": f"2003-04-05 0{row // 2 % 3}:00",
            }
        )
    for name in ("Xqfile-cut.dcm", "Xqfile-000-cut.dcm"):
        (folder / name).write_bytes((folder / "Xqfile-000.dcm").read_bytes()[:-100])
    jobs.write_labels(folder, [*rows, {**rows[-1], "path": "Xqfile-cut.dcm"}])
    return folder


def _fill(path: Path, row: int) -> None:
    """Give every element that may name somebody a canary; those of no image module, too."""
    dataset = dcmread(path)
    with unchecked():
        for keyword in filter(TELLING.search, keyword_dict):
            vr = dictionary_VR(keyword)
            if (
                vr in FILLED_VRS
                and not SET_APART.search(keyword)
                and keyword_dict[keyword] >> 16 not in (0, 2)
            ):
                setattr(dataset, keyword, VALUES.get(vr, "Xqtext"))
        dataset.PatientID = f"Xqtext-{row // 2}"
        dataset.StudyInstanceUID = f"1.2.826.0.1.9911.1.{row}"
        dataset.SeriesInstanceUID = f"1.2.826.0.1.9911.2.{row}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.9911.3.{row}"
        # Code strings by their VR, and free text all the same.
        dataset.BodyPartExamined, dataset.ViewPosition = "Xqtext of Kim", "Xqname"
        block = dataset.private_block(0x0011, "Xqprivate", create=True)
        block.add_new(1, "LO", "Xqprivate")
        dataset.save_as(path, enforce_file_format=True)


@contextmanager
def unchecked() -> Iterator[None]:
    """Let pydicom write values that the standard does not allow."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        yield
    finally:
        config.settings.writing_validation_mode = before


def found_in(root: Path, words: Sequence[str]) -> dict[str, list[str]]:
    """Return the files below `root` (also by their own names) that hold a word, and which words."""
    hits = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        texts = [name.encode(), *(layers(path.read_bytes()) if path.is_file() else ())]
        here = words_in(texts, words)
        if path.suffix in (".sqlite", ".db"):
            here |= words_in(_sqlite_texts(path), words)
        if path.suffix == ".parquet":
            here |= words_in(_parquet_texts(path), words)
        if here:
            hits[name] = sorted(here)
    return hits


def words_in(texts: Iterable[bytes], words: Sequence[str]) -> set[str]:
    """Return the words that texts hold, in UTF-8, 16 or 32 and any case."""
    return {
        word
        for text in (text.lower() for text in texts)
        for word in words
        if any(word.encode(encoding) in text for encoding in ("utf-8", "utf-16-le", "utf-32-le"))
    }


def layers(content: bytes, depth: int = 3) -> Iterator[bytes]:
    """Yield content, and what is packed in it: gzip, ZIP and its names, PNG texts, data addresses."""
    yield content
    if not depth:
        return
    if content.startswith(b"\x1f\x8b"):
        yield from layers(gzip.decompress(content), depth - 1)
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                yield member.filename.encode() + member.comment
                yield from layers(archive.read(member), depth - 1)
    if content.startswith(b"\x89PNG"):
        yield from _png_texts(content)
    for packed in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield from layers(base64.b64decode(packed), depth - 1)


def _png_texts(content: bytes) -> Iterator[bytes]:
    """Yield the data of all chunks but pixels, inflated where they are packed (PNG 11.3.3)."""
    at = 8
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + length]
        if kind != b"IDAT":
            yield data
        if kind in (b"zTXt", b"iTXt"):
            with suppress(zlib.error):
                yield zlib.decompress(data[data.index(b"\0") + 2 :])
        at += length + 12


def _sqlite_texts(path: Path) -> Iterator[bytes]:
    connection = sqlite3.connect(path)
    try:
        yield from (line.encode() for line in connection.iterdump())
    finally:
        connection.close()


def _parquet_texts(path: Path) -> Iterator[bytes]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    yield repr((table.schema.metadata, table.to_pylist())).encode()

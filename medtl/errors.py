"""Describe every error in one line: what is wrong, where, and what to do.

    MedtlError
    ├── ReadError        a file or series cannot be read exactly
    ├── LabelError       the label table does not define the samples
    ├── SplitError       the samples cannot be split without bias
    ├── ConfigError      a recipe or an option is invalid
    ├── WeightsError     pretrained weights are missing, modified or for another network
    ├── TrainingError    training cannot continue
    │   └── AlreadyReportedError  another process of the run has reported the reason
    ├── CheckpointError  a run or checkpoint cannot be loaded
    ├── OutputError      a result cannot be written
    └── PacsError        a PACS does not respond, rejects medtl, or sends an invalid response

Every error has a stable code from CODES, which scripts may match on. docs/errors.md explains each code.
"""

import copyreg
from pathlib import Path
from typing import Any

LINE_LIMIT = 200

CODES: dict[str, str] = {
    # files
    "file-missing": "the path does not exist",
    "file-unreadable": "the file cannot be opened",
    "file-empty": "the file has no bytes",
    "file-unknown": "the content is in no format that medtl reads",
    "folder-empty": "the folder holds no readable image",
    "name-repeated": "two series of a folder have the same name",
    # reading DICOM
    "dicom-header": "the DICOM header cannot be parsed, or contradicts itself",
    "dicom-no-image": "the DICOM file holds something other than an image",
    "dicom-localizer": "the DICOM file is a localizer (scout) image",
    "dicom-transfer-syntax": "the DICOM file states no transfer syntax of its pixels, or a wrong one",
    "dicom-undecoded": "medtl does not decode this transfer syntax",
    "dicom-bits": "BitsAllocated, BitsStored and HighBit contradict each other, or are not decoded",
    "dicom-photometric": "medtl does not read this photometric interpretation",
    "dicom-multiframe": "the DICOM file holds frames without positions, such as a cine loop",
    "dicom-mosaic": "a mosaic or grid of slices does not state how its tiles are arranged",
    "dicom-too-large": "the image is larger than the limit",
    "dicom-truncated": "the DICOM file ends before its pixel data does",
    "dicom-pixels": "the pixel data cannot be decoded",
    "dicom-decoder": "the decoder crashed, or exceeded its limit of time or memory",
    "dicom-rescale": "the Modality LUT or rescale cannot be applied",
    "dicom-not-finite": "some pixel values are NaN, infinite or too large for float32",
    # DICOM instances that should form one volume
    "series-geometry": "the position or orientation of a slice is missing, invalid, or unlike the others'",
    "series-spacing": "the pixel spacing is missing, not positive, or differs between slices",
    "series-mixed": "slices of one series differ in size or type",
    "series-duplicate": "different slices have the same SOPInstanceUID",
    "series-positions": "several slices lie at the same position",
    "series-gap": "slices are missing",
    "series-irregular": "slices are not evenly spaced",
    "series-tilted": "slices are sheared against each other, as with a gantry tilt",
    # reading NIfTI
    "nifti-header": "the NIfTI header contradicts itself",
    "nifti-pair": "the file of the pixels that a NIfTI header belongs to is missing, or not beside it",
    "nifti-damaged": "the gzip stream is corrupt or incomplete",
    "nifti-truncated": "the NIfTI file ends before its pixel data does",
    "nifti-too-large": "the image is larger than the limit",
    "nifti-dimensions": "each voxel holds several values",
    "nifti-type": "medtl does not read this data type",
    "nifti-affine": "sform and qform are missing, singular or contradictory",
    "nifti-not-finite": "some voxel values are NaN or infinite",
    # reading volumes of other formats
    "volume-header": "the header cannot be parsed, or contradicts itself",
    "volume-pair": "the file of the pixels that a header names is missing, or not beside it",
    "volume-damaged": "the compressed pixels are corrupt",
    "volume-truncated": "the file ends before its pixel data does",
    "volume-too-large": "the image is larger than the limit",
    "volume-dimensions": "each voxel holds several values",
    "volume-type": "medtl does not read this data type or encoding",
    "volume-affine": "where the volume lies in the patient is missing, singular or unknown",
    "volume-not-finite": "some voxel values are NaN or infinite",
    "volume-decoder": "the reading process crashed, or exceeded its limit of time or memory",
    # reading PNG, JPEG, TIFF, BMP and WebP
    "raster-damaged": "the image is corrupt or incomplete",
    "raster-too-large": "the image is larger than the limit",
    "raster-frames": "the file holds several frames, which medtl does not read",
    "raster-colour": "medtl does not read this colour model, bit depth or compression",
    "raster-not-finite": "some pixel values are NaN or infinite",
    # reading archives of arrays
    "archive-damaged": "the archive is corrupt or incomplete",
    "archive-packed": "the zip archive is encrypted, nested or packed in a way that medtl does not read",
    "archive-layout": "the archive does not contain MedMNIST's arrays",
    "archive-item": "the archive has no such item",
    "archive-too-large": "an array or a packed file is larger than the limit",
    "image-modality": "the file states a modality or body part that the model was not trained on",
    "image-constant": "every pixel has the same value (a warning: the image is scored)",
    "image-raw": "the pixels are raw detector values, for processing (a warning: the image is scored)",
    "image-dimensions": "the model takes images with a different number of axes",
    "image-channels": "the model takes images with a different number of channels",
    "image-too-large": "resampled to the model's spacing, the image would not fit in memory",
    "image-spacing": "the model resamples to a spacing in mm, and the file does not state its own",
    # label tables
    "label-table": "the label table cannot be understood",
    "label-rows": "rows of the label table are wrong; all of them are listed",
    "class-too-small": "a class has too few patients to split",
    "patient-leak": "a patient is in more than one part of the split",
    "split-empty": "a part of the split has no samples",
    "label-budget": "the training part cannot be reduced to the requested number of labels",
    "split-incomplete": "some samples are assigned to a part of the split and others are not",
    "split-brought": "the label table has a split that contradicts the recipe",
    "split-damaged": "splits.csv is not as medtl wrote it",
    # prepared datasets
    "dataset-damaged": "a prepared dataset is incomplete, was modified, or is from another version",
    "dataset-recipe": "a prepared dataset was made with different settings from the recipe's",
    # configuration
    "config-missing": "the recipe does not exist",
    "config-unknown": "a key is unknown; the nearest known one is named",
    "config-value": "a value is not allowed",
    # weights
    "weights-unknown": "this backbone has no weights of that name",
    "weights-missing": "the weights file is not on this machine",
    "weights-hash": "the weights file differs from the published one",
    "weights-mismatch": "the weights file belongs to a different network",
    "weights-unsafe": "the weights file contains code, or is not a state dict",
    "weights-download": "the weights file cannot be downloaded",
    # training and runs
    "interrupted": "you stopped the command; finished work is saved",
    "loss-not-finite": "the loss became NaN or infinite",
    "out-of-memory": "a training step does not fit into GPU memory",
    "worker-lost": "a worker process that reads or loads images was killed",
    "world-unjoined": "the training processes cannot find each other, or there are too many of them",
    "world-lost": "another of the training processes has ended",
    "predictions-missing": "the run has no saved validation predictions to choose thresholds from",
    "runs-differ": "the runs to compare were evaluated on different samples, labels or classes",
    "run-unfinished": "training was not finished, so the run has no thresholds",
    "run-exists": "the run folder already contains a run",
    "run-locked": "another process is using the folder",
    "run-missing": "the folder is not a run",
    "run-changed": "a run cannot be resumed with a different configuration or different data",
    "checkpoint-damaged": "a checkpoint is incomplete or was modified",
    "scores-invalid": "a checkpoint's probabilities or thresholds are NaN or out of range",
    "ensemble-mixed": "runs with different classes cannot be ensembled",
    "device-missing": "the requested device is not available",
    "scores-damaged": "the record of a scored folder cannot be read",
    "output-unwritable": "the output cannot be written",
    "salt-damaged": "the salt that ids are made with was modified",
    "cache-full": "there is no room for cached activations; training continues without them",
    # searching
    "extra-missing": "an optional package that the command needs is not installed",
    "study-changed": (
        "this search was started with a different space, recipe, metric, seed or data and cannot be resumed"
    ),
    "study-damaged": "the database of a search cannot be read",
    "study-empty": "no trial of the search finished",
    # scoring on several machines
    "cluster-missing": "no cluster responds at this address",
    "cluster-differs": "a machine of the cluster has other versions installed, or cannot see the files",
    # explanations
    "saliency-method": "the saliency method is unknown, or does not suit the network",
    "audit-empty": "no image is suitable for checking saliency maps",
    "mask-grid": "a mask is not on the same grid as its image",
    # exporting
    "export-unsupported": "the model cannot be written in that format",
    "export-differs": "the exported model does not reproduce the checkpoint's output",
    # results for a PACS
    "result-no-study": "the input has no study to return a result to",
    "result-ambiguous": "another file has the same SOPInstanceUID and different content",
    "result-header": "the image headers do not allow a valid result object",
    "result-no-frame": "the slices have no frame of reference for a map",
    # speaking with a PACS
    "pacs-address": "an address, AE title or network is invalid",
    "pacs-tls": "the certificate, key or authority cannot be used for TLS",
    "pacs-unreachable": "the PACS does not respond, or stopped responding",
    "pacs-refused": "the PACS rejected the connection or the login",
    "pacs-answer": "the PACS sent a response that medtl does not understand",
    "pacs-not-kept": "the PACS did not acknowledge an instance",
    "pacs-mismatch": "an instance is not the one that was requested or announced",
    "pacs-duplicate": "an instance arrived again with the same UID and different bytes",
    "pacs-port": "the port cannot be opened for listening",
    "pacs-given-up": "scoring this study killed the process repeatedly, so it is skipped",
    # reports
    "finding-invalid": "a result cannot be displayed as it is",
    "finding-repeated": "two results of a report have the same sample id",
}


class MedtlError(Exception):
    """An error that the user can fix, printed as one line.

    `code` is a key of CODES, `where` the file, row or key, `fix` the remedy. The printed line has at most
    LINE_LIMIT characters: a long `where` is shortened from its left.
    """

    def __init__(self, code: str, reason: str, *, where: str | Path = "", fix: str = "") -> None:
        super().__init__(code, reason, str(where), fix)
        self.code = code
        self.reason = one_line(reason)
        self.where = str(where)
        self.fix = one_line(fix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all fields: by default pickle would call __init__ without its keyword arguments."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.reason, self.fix) if part)
        room = max(LINE_LIMIT - len(f"[{self.code}] : {text}"), 30)
        where = one_line(self.where)
        where = where if len(where) <= room else "…" + where[1 - room :]
        return one_line(f"[{self.code}] {where}: {text}" if where else f"[{self.code}] {text}", LINE_LIMIT)


class ReadError(MedtlError):
    """A file or series cannot be read exactly, so it is not read at all.

    kind: what the file is instead of an image that medtl reads, in a word or two; "" where that is not known.
    """

    kind: str = ""


class LabelError(MedtlError):
    """The label table does not define the samples."""


class SplitError(MedtlError):
    """The samples cannot be split without bias."""


class ConfigError(MedtlError):
    """A recipe or an option is invalid."""


class WeightsError(MedtlError):
    """Pretrained weights are missing, modified or for another network."""


class TrainingError(MedtlError):
    """Training cannot continue; everything saved before is intact."""


class AlreadyReportedError(TrainingError):
    """Another process of the same run has reported the error: this one exits silently."""

    exit_code = 1  # StopSignal sets that of its signal


class CheckpointError(MedtlError):
    """A run or checkpoint cannot be loaded."""


class OutputError(MedtlError):
    """A result cannot be written."""


class PacsError(MedtlError):
    """A PACS does not respond, rejects medtl, or sends an invalid response; what it acknowledged is saved."""


def printable(text: str) -> str:
    """Return text without control characters: a file name may contain escapes, a header any bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def one_line(text: str, most: int | None = None) -> str:
    """Return text as one printable line, of no more than so many characters."""
    line = printable(" ".join(text.split()))
    return line if most is None or len(line) <= most else line[: most - 1] + "…"

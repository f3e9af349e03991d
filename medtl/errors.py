"""Say in one line what is wrong, where, and what to do about it.

    MedtlError
    ├── ReadError        a file or series cannot be read exactly
    ├── LabelError       a label table does not say what the samples are
    ├── SplitError       samples cannot be split honestly
    ├── ConfigError      a recipe or an override is not understood
    ├── WeightsError     pretrained weights are absent, altered or of another network
    ├── TrainingError    training cannot go on
    │   └── AlreadyToldError  another process of the run has said why
    ├── CheckpointError  a run or checkpoint cannot be loaded
    ├── OutputError      a result cannot be written where it was asked for
    └── PacsError        a PACS does not answer, refuses, or answers oddly

Every error has a stable code from CODES, which scripts may match on.
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
    "file-unknown": "the content is of no format that medtl reads",
    "folder-empty": "the folder holds no readable image",
    "name-repeated": "two series of a folder have the same name",
    # reading DICOM
    "dicom-header": "the DICOM header cannot be parsed, or contradicts itself",
    "dicom-no-image": "the DICOM file holds something other than an image",
    "dicom-localizer": "the DICOM file is a localizer",
    "dicom-transfer-syntax": "the transfer syntax is missing",
    "dicom-undecoded": "the transfer syntax is not decoded",
    "dicom-bits": "the bits of a pixel value contradict each other",
    "dicom-photometric": "the photometric interpretation is not read",
    "dicom-multiframe": "the DICOM file holds frames without positions, as a cine",
    "dicom-mosaic": "a Siemens mosaic does not say how its tiles lie",
    "dicom-too-large": "the image is larger than the limit",
    "dicom-truncated": "the DICOM file ends before its pixel data do",
    "dicom-pixels": "the pixel data cannot be decoded",
    "dicom-decoder": "the decoder crashed, or ran over its limits of time or memory",
    "dicom-rescale": "the Modality LUT or rescale cannot be applied",
    "dicom-not-finite": "the pixel values are not all finite",
    # DICOM instances that should form one volume
    "series-geometry": "position or orientation of a slice is missing or invalid",
    "series-spacing": "the pixel spacing is missing, not positive, or differs between slices",
    "series-mixed": "slices of one series differ in size or kind",
    "series-duplicate": "different slices have the same SOPInstanceUID",
    "series-positions": "several slices lie at the same position",
    "series-gap": "slices are missing",
    "series-irregular": "slices are not evenly spaced",
    "series-tilted": "slices are sheared against each other, as by a gantry tilt",
    # reading NIfTI
    "nifti-header": "the NIfTI header contradicts itself",
    "nifti-pair": "a NIfTI header without its pixels is not read",
    "nifti-damaged": "the gzip stream is corrupt or incomplete",
    "nifti-truncated": "the NIfTI file ends before its pixel data do",
    "nifti-too-large": "the image is larger than the limit",
    "nifti-dimensions": "a voxel has several values",
    "nifti-type": "the data type is not read",
    "nifti-affine": "sform and qform are missing, singular or in conflict",
    "nifti-not-finite": "the pixel values are not all finite",
    # reading PNG and JPEG
    "raster-damaged": "the image is corrupt or incomplete",
    "raster-too-large": "the image is larger than the limit",
    "raster-frames": "several frames in one file are not read",
    "raster-colour": "the colour model or bit depth is not read",
    # reading archives of arrays
    "archive-damaged": "the archive is corrupt or incomplete",
    "archive-layout": "the archive does not have MedMNIST's arrays",
    "archive-item": "the archive has no such item",
    "archive-too-large": "an array is larger than the limit",
    "image-modality": "the file names a modality or body part that the model is not for",
    "image-constant": "every pixel has the same value: a warning, the image is scored",
    "image-dimensions": "the model takes images with another number of axes",
    "image-too-large": "resampled to the model's spacing the image would not fit in memory",
    "image-spacing": "the model resamples to a spacing that the file does not say",
    # label tables
    "label-table": "the label table cannot be understood",
    "label-rows": "rows of the label table are wrong; all are listed",
    "class-too-small": "a class has too few patients to be split",
    "patient-leak": "a patient is in more than one part of the split",
    "split-empty": "a part of the split has no samples",
    "label-budget": "the training part cannot be cut down to the number of labels asked for",
    "split-incomplete": "some samples have a part of the split and some have none",
    "split-brought": "the label table brings a split that the recipe contradicts",
    "split-damaged": "a splits.csv is not what medtl wrote",
    # prepared datasets
    "dataset-damaged": "a prepared dataset is incomplete, was altered or is of another version",
    "dataset-recipe": "a prepared dataset was made with other settings than the recipe's",
    # configuration
    "config-missing": "the recipe does not exist",
    "config-unknown": "a key is not known; the nearest known one is named",
    "config-value": "a value is not allowed",
    # weights
    "weights-unknown": "no weights of that name for this backbone",
    "weights-missing": "the weights file is not on this machine",
    "weights-hash": "the weights file is not the published one",
    "weights-mismatch": "the weights file belongs to another network",
    "weights-unsafe": "the weights file holds code, or is not a state dict",
    "weights-download": "the weights file cannot be downloaded",
    # training and runs
    "interrupted": "the user stopped the command; what was saved is kept",
    "loss-not-finite": "the loss became NaN or infinite",
    "out-of-memory": "the device has no room for a training step",
    "worker-lost": "a process that reads or loads images was killed",
    "world-unjoined": "the processes that shall train together do not find each other, or are too many",
    "world-lost": "another of the processes that train together has ended",
    "predictions-missing": "the run kept no validation predictions, from which thresholds could be chosen",
    "runs-differ": "runs that are to be compared were judged on other samples, labels or classes",
    "run-unfinished": "the run was not finished, so it has no thresholds",
    "run-exists": "the run folder already holds a run",
    "run-locked": "another process is working in the folder",
    "run-missing": "the folder is not a run",
    "run-changed": "a run cannot be resumed with another configuration or other data",
    "checkpoint-damaged": "a checkpoint is incomplete or was altered",
    "scores-invalid": "a checkpoint's probabilities or thresholds are no usable numbers",
    "ensemble-mixed": "runs of different classes cannot judge together",
    "device-missing": "the device that was asked for is not here",
    "scores-damaged": "the record of a scored folder cannot be read",
    "output-unwritable": "the output cannot be written",
    "salt-damaged": "the salt of ids is not what medtl made",
    "cache-full": "there is no room for cached activations: training goes on without them",
    # searching
    "extra-missing": "an optional package that the command needs is not installed",
    "study-changed": "a search cannot be gone on with over another space, recipe, metric, seed or data",
    "study-damaged": "the database of a search cannot be read",
    "study-empty": "no trial of a search came to an end",
    # scoring on several machines
    "cluster-missing": "no cluster answers at the address",
    "cluster-differs": "a machine of a cluster has other versions, or does not see the files",
    # explanations
    "saliency-method": "the saliency method is not known, or does not suit the network",
    "audit-empty": "no image can serve to check saliency maps",
    "mask-grid": "a mask is not on the grid of its image",
    # exporting
    "export-unsupported": "the backbone cannot be written in that format",
    "export-differs": "an exported model does not give what the checkpoint gives",
    # results for a PACS
    "result-no-study": "the input names no study that a result could go back to",
    "result-ambiguous": "another file has the same SOPInstanceUID and another content",
    "result-header": "the header of the images does not allow an object about them",
    "result-no-frame": "the slices name no frame of reference in which a map could lie",
    # speaking with a PACS
    "pacs-address": "an address, AE title or network is not understood",
    "pacs-tls": "certificate, key or authority cannot be used for TLS",
    "pacs-unreachable": "the PACS does not answer, or stopped answering",
    "pacs-refused": "the PACS does not let medtl in",
    "pacs-answer": "the PACS answers what cannot be understood",
    "pacs-not-kept": "the PACS did not acknowledge an instance",
    "pacs-mismatch": "an instance is not the one that was asked for or announced",
    "pacs-duplicate": "an instance came again under its UID, with other bytes",
    "pacs-port": "the port cannot be listened on",
    "pacs-given-up": "a study whose scoring ended the process again and again is left alone",
    # reports
    "finding-invalid": "a finding cannot be shown as it is",
    "finding-repeated": "two findings of a report have the same sample id",
}


class MedtlError(Exception):
    """A fault that the user can mend, printed as one line.

    `code` is a key of CODES; `where` the file, row or key; `fix` the remedy. The printed line is at most
    LINE_LIMIT characters long: a long `where` is shortened from its left.
    """

    def __init__(self, code: str, reason: str, *, where: str | Path = "", fix: str = "") -> None:
        super().__init__(code, reason, str(where), fix)
        self.code = code
        self.reason = _one_line(reason)
        self.where = str(where)
        self.fix = _one_line(fix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole: pickle would call __init__ without the keywords that it takes."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def __str__(self) -> str:
        fixed = f"[{self.code}] " + ": ".join(part for part in (self.reason, self.fix) if part)
        where = _one_line(self.where)
        if not where:
            return _clip_right(fixed, LINE_LIMIT)
        room = max(LINE_LIMIT - len(fixed) - 2, 30)
        head = f"[{self.code}] {_clip_left(where, room)}: "
        return _clip_right(head + fixed[len(self.code) + 3 :], LINE_LIMIT)


class ReadError(MedtlError):
    """A file or series cannot be read exactly, and so is not read at all."""


class LabelError(MedtlError):
    """A label table does not say what the samples are."""


class SplitError(MedtlError):
    """Samples cannot be split honestly."""


class ConfigError(MedtlError):
    """A recipe or an override is not understood."""


class WeightsError(MedtlError):
    """Pretrained weights are absent, altered or of another network."""


class TrainingError(MedtlError):
    """Training cannot go on; what was saved before is intact."""


class AlreadyToldError(TrainingError):
    """Another process of the same run has told of the fault: this one ends without a word."""


class CheckpointError(MedtlError):
    """A run or checkpoint cannot be loaded."""


class OutputError(MedtlError):
    """A result cannot be written where it was asked for."""


class PacsError(MedtlError):
    """A PACS does not answer, refuses, or answers oddly; what was acknowledged is remembered."""


def printable(text: str) -> str:
    """Return text on which no terminal acts: a file name may hold escapes, a header any bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _clip_left(text: str, room: int) -> str:
    return text if len(text) <= room else "…" + text[-(room - 1) :]


def _clip_right(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"

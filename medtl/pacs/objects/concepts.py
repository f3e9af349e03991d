"""Coded concepts: from SNOMED CT, UCUM or DICOM if they have one, otherwise from medtl's private scheme."""

import hashlib
import re

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

# A private coding scheme begins with 99 (PS3.16 8).
SCHEME = "99MEDTL"
SCHEME_ITEM = CodingSchemeIdentificationItem(
    designator=SCHEME, name="Class names of models trained with medtl", responsible_organization="medtl"
)
MEANING_LIMIT, UNPRINTABLE = 64, re.compile(r"[\\\x00-\x1f\x7f]")

PROBABILITY = Code("122157", "DCM", "Probability")
SALIENCY = Code("130404", "DCM", "Saliency")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
YES, NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
NO_UNITS = Code("1", "UCUM", "no units")
PREDICTED = Code("predicted", SCHEME, "Predicted by the model")
IN_PREDICTION_SET = Code("in-set", SCHEME, "In the prediction set")
THRESHOLD = Code("threshold", SCHEME, "Predicted from this probability on")
OOD_CHECK = Code("screening", SCHEME, "Is this an image for this model?")
# By the verdict of the out-of-distribution check. A code has at most 16 characters.
OOD_VERDICTS = {
    "ok": Code("screen-ok", SCHEME, "Yes, like the training images"),
    "modality": Code("screen-modality", SCHEME, "No, of another modality than the training images"),
    "body part": Code("screen-body-part", SCHEME, "No, of another body part than the training images"),
    "geometry": Code("screen-geometry", SCHEME, "No, of another geometry than the training images"),
    "far from the training images": Code("screen-far", SCHEME, "No, far from the training images"),
}

# The procedure, as far as the modality implies it.
PROCEDURES = {
    "CR": Code("363680008", "SCT", "Radiographic imaging procedure"),
    "DX": Code("363680008", "SCT", "Radiographic imaging procedure"),
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
}
IMAGING = Code("363679005", "SCT", "Imaging")

# Class names with an unambiguous SNOMED CT concept; all others get a code of the private scheme.
FINDINGS = {
    "normal": Code("17621005", "SCT", "Normal"),
    "abnormal": Code("263654008", "SCT", "Abnormal"),
    "lesion": Code("52988006", "SCT", "Lesion"),
    "mass": Code("4147007", "SCT", "Mass"),
    "nodule": Code("27925004", "SCT", "Nodule"),
    "cardiomegaly": Code("287272002", "SCT", "Cardiomegaly"),
    "edema": Code("79654002", "SCT", "Edema"),
    "effusion": Code("41699000", "SCT", "Effusion"),
    "pleural effusion": Code("60046008", "SCT", "Pleural effusion"),
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "fibrosis": Code("112674009", "SCT", "Fibrosis"),
    "hemorrhage": Code("50960005", "SCT", "Hemorrhage"),
}


def class_concept(name: str) -> CodedConcept:
    """Return the concept for a class name: the same name gives the same code."""
    known = FINDINGS.get(re.sub(r"[\s_]+", " ", name).strip().casefold())
    if known is not None:
        return CodedConcept.from_code(known)
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return CodedConcept(f"C{digest[:12]}", SCHEME, meaning_of(name))


def ood_text(verdict: str) -> str:
    """Return the result of the out-of-distribution check as a sentence, "" if there was none."""
    return f"{OOD_CHECK.meaning} {OOD_VERDICTS[verdict].meaning}." if verdict else ""


def meaning_of(text: str) -> str:
    """Return a text that is valid as a Code Meaning: at most 64 characters, without backslashes."""
    plain = UNPRINTABLE.sub(" ", text.encode("utf-8", "replace").decode()).strip()
    return plain[:MEANING_LIMIT] or "unnamed"

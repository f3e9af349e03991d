"""Decide who is in the sample data: patients, their studies, labels, and traits apart from the label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .randomness import generator

Kind = Literal["xray", "mri"]

LABELS: Mapping[Kind, tuple[str, str]] = {"xray": ("normal", "opacity"), "mri": ("normal", "lesion")}
SCANNERS = ("north", "south")

# Options and their weights. Each is assigned independently, so that none of them is a shortcut to the label.
TRAITS: Mapping[Kind, Mapping[str, Mapping[str, int]]] = {
    "xray": {
        "scanner": {"north": 65, "south": 55},
        "syntax": {"explicit": 15, "rle": 22, "j2k": 82, "jpegls": 1},
        "photometric": {"MONOCHROME2": 90, "MONOCHROME1": 30},
        "bits": {"12": 90, "16": 30},
        "view": {"PA": 80, "AP": 40},
    },
    "mri": {
        "scanner": {"north": 24, "south": 20},
        "container": {"dicom": 32, "nifti": 12},
        "syntax": {"explicit": 6, "implicit": 5, "rle": 9, "j2k": 24},
        "rescale": {"absent": 22, "series": 14, "slice": 8},
        "order": {"reversed": 14, "shuffled": 20, "interleaved": 10},
        "tilt": {"axial": 28, "oblique": 16},
        "orientation": {"RAS": 24, "LAS": 20},
    },
}


@dataclass(frozen=True)
class Cohort:
    """Patients of one kind: how many have one study, how many two, how many studies have a lesion."""

    name: str
    kind: Kind
    once: int
    twice: int
    lesions: int
    first_patient: int = 1


COHORTS = (
    Cohort("labelled", "xray", once=60, twice=30, lesions=54),
    Cohort("labelled", "mri", once=24, twice=10, lesions=20),
    Cohort("unlabelled", "xray", once=11, twice=0, lesions=5, first_patient=901),
    Cohort("unlabelled", "mri", once=6, twice=0, lesions=3, first_patient=901),
)


@dataclass(frozen=True)
class Study:
    """One image to be made. age in years at the study; traits: one option of each of TRAITS[kind]."""

    kind: Kind
    patient_id: str
    number: int
    label: str
    sex: str
    age: int
    traits: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.patient_id}-{self.number}"

    @property
    def has_lesion(self) -> bool:
        """Whether the label is the positive one."""
        return self.label == LABELS[self.kind][1]


def make_cohort(cohort: Cohort) -> list[Study]:
    """Return the studies of a cohort in order of patient and date; every trait is assigned independently."""
    kind, visits = cohort.kind, _visits(cohort)
    normal, lesion = LABELS[kind]
    labels = assign(
        {normal: len(visits) - cohort.lesions, lesion: cohort.lesions}, len(visits), cohort, "label"
    )
    traits = {name: assign(options, len(visits), cohort, name) for name, options in TRAITS[kind].items()}
    people = _people(cohort)
    return [
        Study(
            kind=kind,
            patient_id=_patient_id(kind, patient),
            number=number,
            label=labels[row],
            sex=people[patient][0],
            age=people[patient][1] + number - 1,
            traits={name: options[row] for name, options in traits.items()},
        )
        for row, (patient, number) in enumerate(visits)
    ]


def assign(options: Mapping[str, int], size: int, cohort: Cohort, purpose: str) -> list[str]:
    """Assign options in proportion to their weights, largest remainders first, in random order."""
    exact = np.array(list(options.values())) * size / sum(options.values())
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: size - counts.sum()]] += 1
    assigned = np.repeat(list(options), counts)
    generator("deal", cohort.kind, cohort.name, purpose).shuffle(assigned)
    return [str(option) for option in assigned]


def _visits(cohort: Cohort) -> list[tuple[int, int]]:
    """Return (patient, study number) pairs; who has two studies is random."""
    patients = cohort.first_patient + np.arange(cohort.once + cohort.twice)
    has_two = assign({"1": cohort.once, "2": cohort.twice}, len(patients), cohort, "visits")
    return [(int(p), n + 1) for p, times in zip(patients, has_two) for n in range(int(times))]


def _people(cohort: Cohort) -> dict[int, tuple[str, int]]:
    """Return sex and age at the first study by patient."""
    patients = range(cohort.first_patient, cohort.first_patient + cohort.once + cohort.twice)
    sexes = assign({"F": 1, "M": 1}, len(patients), cohort, "sex")
    ages = generator("age", cohort.kind, cohort.name).integers(22, 89, size=len(patients))
    return {patient: (sex, int(age)) for patient, sex, age in zip(patients, sexes, ages)}


def _patient_id(kind: Kind, patient: int) -> str:
    return f"{'XR' if kind == 'xray' else 'MR'}{patient:03d}"

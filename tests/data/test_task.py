"""The class that means "nothing there" comes first, and a task that makes no sense is refused."""

import pytest
from pydantic import ValidationError

from medtl.data.task import Task, TaskConfig, order_classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lesion", "normal"], ("normal", "lesion")),
        (["glioma", "meningioma", "none", "pituitary"], ("none", "glioma", "meningioma", "pituitary")),
        (["yes", "no"], ("no", "yes")),
        (["tumor", "no_tumor"], ("no_tumor", "tumor")),
        (["glioma", "notumor"], ("notumor", "glioma")),
        (["fracture", "No Finding"], ("No Finding", "fracture")),
        (["1", "0"], ("0", "1")),
        (["malignant", "benign", "normal"], ("normal", "benign", "malignant")),
        (["covid", "Non-COVID"], ("Non-COVID", "covid")),
        (["nodule", "effusion"], ("effusion", "nodule")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_classes_come_by_name_after_the_negative_one(names: list[str], expected: tuple[str, ...]) -> None:
    assert order_classes(names) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", "")},
        {"classes": ("a|b", "c")},
        {"x": 1},
        {"kind": "ternary"},
        {"kind": "binary", "classes": ("a", "b", "c")},
    ],
)
def test_a_task_that_makes_no_sense_is_no_config(values: dict) -> None:
    with pytest.raises(ValidationError):
        TaskConfig(**values)


def test_in_binary_the_positive_class_alone_is_judged_against_the_rest() -> None:
    assert Task("binary", ("normal", "lesion")).asked_classes == ("lesion",)
    for kind in ("multiclass", "multilabel"):
        assert Task(kind, ("a", "b", "c")).asked_classes == ("a", "b", "c")  # type: ignore[arg-type]

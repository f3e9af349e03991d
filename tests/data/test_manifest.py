"""Label tables are understood exactly, or every problem in them is listed with its row."""

import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from medtl.core.ids import hash_identifier
from medtl.data.labels import LabelRowsError, LeakRowsError
from medtl.data.manifest import load_manifest, targets
from medtl.data.task import Manifest, Task, TaskConfig, has_patient_id
from medtl.errors import LINE_LIMIT, LabelError, ReadError, SplitError
from tests.waiting import slowness

NOTHING = TaskConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images/0.png to images/5.png."""
    root = tmp_path / "data"
    for index in range(6):
        add_image(root / "images" / f"{index}.png", index)
    return root


def add_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def load(folder: Path, text: str | bytes, config: TaskConfig = NOTHING) -> Manifest:
    table = folder.parent / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_manifest(folder, table, config)


def problems_of(folder: Path, text: str, config: TaskConfig = NOTHING) -> tuple[str, ...]:
    with pytest.raises(LabelRowsError) as caught:
        load(folder, text, config)
    assert caught.value.code == "label-rows"
    return caught.value.problems


def refused(folder: Path, text: bytes, config: TaskConfig = NOTHING) -> LabelError:
    with pytest.raises(LabelError) as caught:
        load(folder, text, config)
    line = str(caught.value)
    assert len(line) <= LINE_LIMIT and "\n" not in line
    return caught.value


PLAIN = "path,label\nimages/0.png,normal\nimages/1.png,lesion\nimages/2.png,normal\n"


def test_a_plain_table_becomes_samples(folder: Path) -> None:
    manifest = load(folder, PLAIN)
    assert manifest.task == Task("binary", ("normal", "lesion"))
    assert [sample.target for sample in manifest.samples] == [0, 1, 0]
    assert [sample.series.path for sample in manifest.samples] == [
        folder / f"images/{i}.png" for i in range(3)
    ]
    first = manifest.samples[0]
    assert first.sample_id == first.patient_id == "s" + hash_identifier("images/0.png", length=10)
    assert (first.split, dict(first.attributes)) == (None, {})
    assert "no patient ids: each path is its own patient" in manifest.notes
    assert "3 images or series of the folder are not in the table" in manifest.notes


def test_optional_columns_become_patient_study_split_and_attributes(folder: Path) -> None:
    header = "path,label,patient_id,study_id,split,age,scanner"
    text = header + "\nimages/0.png,b,P1,S1,train,40,X\nimages/1.png,a,P2,,VAL,,Y\n"
    first, second = load(folder, text).samples
    assert (first.patient_id, first.study_id, first.split) == ("P1", "S1", "train")
    assert dict(first.attributes) == {"age": "40", "scanner": "X"}
    assert (second.study_id, second.split, second.attributes["age"]) == ("", "val", "")


def test_identifiers_never_become_attributes(folder: Path) -> None:
    header = "path,label,PatientName,MRN,SOPInstanceUID,series_uid"
    text = header + "\nimages/0.png,a,Doe,1,1.2,1.3\nimages/1.png,b,Roe,2,1.4,1.5\n"
    assert [dict(sample.attributes) for sample in load(folder, text).samples] == [{}, {}]


@pytest.mark.parametrize("mark", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_delimiters_encodings_and_line_ends_are_told_apart(
    folder: Path, mark: str, encoding: str, end: str
) -> None:
    text = PLAIN.replace(",", mark).replace("lesion", "lésion").replace("\n", end)
    manifest = load(folder, text.encode(encoding))
    assert manifest.task.classes == ("normal", "lésion")
    assert len(manifest.samples) == 3


def test_a_table_in_an_old_encoding_is_read_with_a_note(folder: Path) -> None:
    manifest = load(folder, PLAIN.replace("lesion", "lésion").encode("cp1252"))
    assert manifest.task.classes == ("normal", "lésion")
    assert "Windows-1252" in manifest.notes[0]


def test_a_table_in_another_encoding_is_refused_until_the_recipe_names_it(folder: Path) -> None:
    words = PLAIN.replace("lesion", "肺炎").replace("normal", "正常").encode("gbk")
    error = refused(folder, words)
    assert error.code == "label-table" and "task.encoding" in error.fix
    manifest = load(folder, words, TaskConfig(encoding="GBK"))
    assert manifest.task.classes == ("正常", "肺炎")


def test_a_wrong_encoding_is_one_line(folder: Path) -> None:
    words = PLAIN.replace("lesion", "肺炎").encode("gbk")
    error = refused(folder, words, TaskConfig(encoding="utf-8"))
    assert error.code == "label-table" and "utf-8" in error.reason


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"], ids=["xlsx", "xls"])
def test_a_workbook_is_named(folder: Path, start: bytes) -> None:
    error = refused(folder, start + bytes(100))
    assert error.code == "label-table" and "spreadsheet" in error.reason and "CSV" in error.fix


def test_one_text_in_two_unicode_forms_is_one_class(folder: Path) -> None:
    two = unicodedata.normalize("NFD", "lésion")
    text = (
        f"path,label,site\nimages/0.png,normal,Köln\nimages/1.png,lésion,Ko\u0308ln\nimages/2.png,{two},Köln"
    )
    manifest = load(folder, text)
    assert manifest.task.classes == ("normal", "lésion")
    assert {sample.attributes["site"] for sample in manifest.samples} == {"Köln"}
    named = load(folder, text, TaskConfig(classes=("normal", two)))
    assert named.task.classes == ("normal", two) and [one.target for one in named.samples] == [0, 1, 1]


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_a_path_is_found_in_either_unicode_form(folder: Path, stored: str, written: str) -> None:
    names = [unicodedata.normalize(form, "Müller.png") for form in (stored, written)]
    (folder / "images/0.png").rename(folder / "images" / names[0])
    manifest = load(folder, PLAIN.replace("0.png", names[1]))
    assert len(manifest.samples) == 3


def test_words_that_table_readers_take_for_missing_stay_classes(folder: Path) -> None:
    manifest = load(folder, "path,label\nimages/0.png,none\nimages/1.png,NA\nimages/2.png,nan\n")
    assert manifest.task.classes == ("none", "NA", "nan")


def test_quoted_cells_spaces_blank_lines_and_spare_commas_are_no_problem(folder: Path) -> None:
    text = '\n"path" , Label ,\n"images/0.png","a, or b",\n\n images/1.png , c ,\n,,\n'
    manifest = load(folder, text)
    assert manifest.task.classes == ("a, or b", "c")


def test_every_problem_is_listed_with_its_row(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes((folder / "images/0.png").read_bytes())
    text = (
        "path,label,split,patient_id\n"
        "images/0.png,a,train,P0\n"  # row 2
        "images/9.png,a,train,P1\n"
        "images/0.png,a,train,P0\n"
        "./images//0.png,b,train,P0\n"
        "images/1.png,,train,P2\n"
        "../outside.png,a,train,P3\n"
        "images/2.png,c,train,P4\n"  # row 8
        "images/3.png,b,later,P5\n"
        "images/4.png,b,,P6\n"
        "images/5.png,b,val,\n"
        ",b,val,P8\n"
    )
    assert problems_of(folder, text, TaskConfig(classes=("a", "b"))) == (
        "row 3: images/9.png does not exist",
        "row 4: duplicate of row 2 for images/0.png",
        "row 5: conflicting label: row 2 has another one for ./images//0.png",
        "row 6: label is empty",
        "row 7: ../outside.png leads out of the folder",
        "row 8: label 'c' is no class",
        "row 9: split 'later' is not train, val or test",
        "row 10: split is empty",
        "row 11: patient_id is empty: fill it in, or remove the column",
        "row 12: path is empty",
    )


def test_the_one_line_counts_the_problems_and_shows_the_first(folder: Path) -> None:
    with pytest.raises(LabelRowsError) as caught:
        load(folder, "path,label\nimages/8.png,a\nimages/9.png,b\nimages/0.png,\n")
    assert "3 problems, the first: row 2: images/8.png does not exist" in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_problems_stay_on_one_line_whatever_a_cell_holds(folder: Path) -> None:
    cell = '"first\nsecond \x1b[31m' + "x" * 500 + '"'
    (problem,) = problems_of(folder, f"path,label\n{cell},a\nimages/1.png,b\n")
    assert problem.startswith("row 2: first second ?[31mxxx")
    assert problem.isprintable()
    assert len(problem) == 200


def test_a_misplaced_file_is_found_again_by_its_name(folder: Path) -> None:
    (problem, _) = problems_of(folder, "path,label\n0.PNG,a\nimages/1.png,b\nimages/7.png,b\n")
    assert problem == "row 2: 0.PNG does not exist (did you mean images/0.png?)"


def test_rows_without_a_path_are_listed(folder: Path) -> None:
    assert len(problems_of(folder, "path,label\n,a\n,b\n")) == 2


def test_where_no_path_is_right_one_line_says_what_paths_are_relative_to(folder: Path) -> None:
    rows = "".join(f"{index}.png,{'ab'[index % 2]}\n" for index in range(6))
    with pytest.raises(LabelError) as caught:
        load(folder, f"path,label\n{rows}")
    assert caught.value.code == "label-rows" and not hasattr(caught.value, "problems")
    assert (
        caught.value.reason == "none of the paths exists: 0.png does not exist (did you mean images/0.png?)"
    )
    assert caught.value.fix == f"paths are relative to --data, {folder}"
    wrong = [
        f"row {index + 2}: {index}.png does not exist (did you mean images/{index}.png?)" for index in (0, 1)
    ]
    assert problems_of(folder, f"path,label\n{rows}images/5.png,a\n")[:2] == tuple(wrong)


def test_backslashes_of_another_system_are_understood(folder: Path) -> None:
    assert len(load(folder, PLAIN.replace("/", "\\")).samples) == 3


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_that_leaves_the_folder_is_not_followed(folder: Path, target: str) -> None:
    add_image(folder.parent / "secret" / "x.png")
    if target == "file":
        (folder / "link.png").symlink_to(folder.parent / "secret" / "x.png")
    else:
        (folder / "link").symlink_to(folder.parent / "secret")
    cell = "link.png" if target == "file" else "link/x.png"
    (problem,) = problems_of(folder, f"path,label\n{cell},a\nimages/1.png,b\n")
    assert problem == f"row 2: {cell} leads out of the folder"


def test_absolute_paths_are_taken_inside_the_folder_only(folder: Path) -> None:
    inside, outside = folder / "images/0.png", folder.parent / "labels.csv"
    assert len(load(folder, f"path,label\n{inside},a\nimages/1.png,b\n").samples) == 2
    (problem,) = problems_of(folder, f"path,label\n{outside},a\nimages/1.png,b\n")
    assert "leads out of the folder" in problem


@pytest.mark.parametrize(
    "cell", ["x" * 5000, "images/" * 900, "a\x00b"], ids=["long-name", "long-path", "nul"]
)
def test_paths_that_no_system_takes_are_problems_and_no_tracebacks(folder: Path, cell: str) -> None:
    with pytest.raises(LabelError):
        load(folder, f"path,label\n{cell},a\nimages/1.png,b\n")


def test_a_file_that_is_no_image_is_a_problem(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    (problem,) = problems_of(folder, "path,label\nnotes.txt,a\nimages/1.png,b\n")
    assert problem == "row 2: notes.txt holds no image that can be read"


@pytest.mark.parametrize("name", ["broken.png", "two  spaces.png"])
def test_a_labelled_file_that_cannot_be_read_is_left_out_with_a_note(folder: Path, name: str) -> None:
    (folder / "images" / name).write_bytes(b"")
    manifest = load(folder, PLAIN + f"images/{name},lesion\n")
    assert len(manifest.samples) == 3
    assert [error.code for error in manifest.refusals] == ["file-empty"]
    assert any("cannot be read and are left out: 1, first" in note for note in manifest.notes)


def test_a_folder_names_the_one_image_in_it_and_no_more(folder: Path) -> None:
    add_image(folder / "study" / "x.png")
    assert load(folder, "path,label\nstudy,a\nimages/1.png,b\n").samples[0].series.path.name == "x.png"
    (problem,) = problems_of(folder, "path,label\nstudy,a\nimages,b\n")
    assert problem == "row 3: images holds 6 series: name one of them"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,label", "no column path, series_uid or study_uid; found: file, label"),
        ("paths,label", "did you mean 'paths'?"),
        ("path,labels", "did you mean 'labels'?"),
        ("path,label,Label ", "have the same name"),
        ("path,label,a,a", "have the same name"),
        ("path", "no column label"),
    ],
    ids=["no-path", "near-path", "near-label", "twice", "one-letter-twice", "no-label"],
)
def test_a_table_without_its_columns_says_what_it_found(folder: Path, header: str, message: str) -> None:
    with pytest.raises(LabelError, match="label-table") as caught:
        load(folder, header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n \n", b"path,label\n", b",,\nimages/0.png,a\n", b"PK\x03\x04rest", b"\xff\xfea"),
        *(b"\x89PNG\r\n\x1a\n\x00\x00", b"path,label\nimages/0.png,l\x81\n", b"PAR1garbage"),
    ],
    ids=[
        *("empty", "blank", "header-only", "no-header", "spreadsheet", "odd-utf16"),
        *("image", "no-known-encoding", "damaged-parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(folder: Path, content: bytes) -> None:
    with pytest.raises(LabelError) as caught:
        load(folder, content)
    assert caught.value.code == "label-table"


def test_rows_longer_than_the_header_are_problems(folder: Path) -> None:
    assert problems_of(folder, PLAIN + "images/3.png,normal,what\n") == ("row 5: 3 cells for 2 columns",)


@pytest.mark.parametrize(("name", "code"), [("absent.csv", "file-missing"), ("images", "file-unreadable")])
def test_a_table_that_cannot_be_opened_is_refused(folder: Path, name: str, code: str) -> None:
    with pytest.raises(LabelError) as caught:
        load_manifest(folder, folder / name, NOTHING)
    assert caught.value.code == code


def test_columns_of_other_names_are_taken_when_asked_for(folder: Path) -> None:
    config = TaskConfig(label_column="diagnosis", path_column="file", patient_column="case")
    manifest = load(folder, "file,diagnosis,case\nimages/0.png,a,P1\nimages/1.png,b,P2\n", config)
    assert [sample.patient_id for sample in manifest.samples] == ["P1", "P2"]


def test_a_patient_column_of_another_spelling_is_found_or_pointed_out(folder: Path) -> None:
    spelled = load(folder, "path,label,PatientID\nimages/0.png,a,P1\nimages/1.png,b,P2\n")
    assert [sample.patient_id for sample in spelled.samples] == ["P1", "P2"]
    other = load(folder, "path,label,subject\nimages/0.png,a,P1\nimages/1.png,b,P2\n")
    assert any("is it column subject?" in note for note in other.notes)


def test_the_positive_class_is_named_in_a_note_unless_it_was_given(folder: Path) -> None:
    assert any("lesion is the positive one" in note for note in load(folder, PLAIN).notes)
    given = load(folder, PLAIN, TaskConfig(classes=("lesion", "normal")))
    assert given.task.classes == ("lesion", "normal")
    assert not any("positive" in note for note in given.notes)


def test_one_class_is_a_problem_unless_the_classes_are_given(folder: Path) -> None:
    one = "path,label\nimages/0.png,normal\nimages/1.png,normal\n"
    assert problems_of(folder, one) == (
        "row 1: the labels have only one class, 'normal': two or more are needed",
    )
    manifest = load(folder, one, TaskConfig(classes=("normal", "lesion")))
    assert [sample.target for sample in manifest.samples] == [0, 0]


def test_classes_that_differ_in_case_only_are_a_problem(folder: Path) -> None:
    (problem,) = problems_of(folder, PLAIN + "images/3.png,Normal\n")
    assert problem == "row 1: are 'Normal' and 'normal' one class? write them alike, or set task.classes"


def test_several_classes_in_one_cell_are_a_problem(folder: Path) -> None:
    (problem,) = problems_of(folder, PLAIN + "images/3.png,effusion|mass\n")
    assert "give one 0/1 column per class" in problem


def test_more_classes_than_two_are_no_binary_task(folder: Path) -> None:
    (problem,) = problems_of(folder, PLAIN + "images/3.png,other\n", TaskConfig(kind="binary"))
    assert "3 classes, and the task is binary" in problem


FLAGS = "path,label_mass,label_effusion\nimages/0.png,1,0\nimages/1.png,,1.0\nimages/2.png,0,\n"


def test_a_column_per_class_makes_a_multilabel_task_with_gaps(folder: Path) -> None:
    manifest = load(folder, FLAGS)
    assert manifest.task == Task("multilabel", ("mass", "effusion"))
    assert [sample.target for sample in manifest.samples] == [(1.0, 0.0), (None, 1.0), (0.0, None)]
    array = targets(manifest.task, manifest.samples)
    assert array.dtype == np.float32
    assert np.array_equal(array, [[1, 0], [np.nan, 1], [0, np.nan]], equal_nan=True)


def test_class_columns_without_prefix_must_be_named(folder: Path) -> None:
    text = FLAGS.replace("label_", "")
    with pytest.raises(LabelError, match="label-table"):
        load(folder, text)
    manifest = load(folder, text, TaskConfig(classes=("effusion", "mass")))
    assert manifest.samples[0].target == (0.0, 1.0)
    with pytest.raises(LabelError, match="no column for class oedema"):
        load(folder, text, TaskConfig(classes=("mass", "oedema")))


def test_flags_that_are_neither_0_nor_1_are_problems(folder: Path) -> None:
    text = FLAGS + "images/3.png,-1,yes\nimages/4.png,,\n"
    assert problems_of(folder, text) == (
        "row 5: mass is '-1': write 1, 0, or nothing where it is not known",
        "row 5: effusion is 'yes': write 1, 0, or nothing where it is not known",
        "row 6: no class is labelled",
    )


def test_a_patient_in_two_parts_is_refused_with_the_rows(folder: Path) -> None:
    rows = ["images/0.png,a,P017,train", "images/1.png,b,P2,val", "images/2.png,b,P017,test"]
    text = "\n".join(["path,label,patient_id,split", *rows])
    with pytest.raises(SplitError) as caught:
        load(folder, text)
    assert isinstance(caught.value, LeakRowsError)
    assert caught.value.code == "patient-leak"
    assert "the patient of rows 2, 4 is in train and test: split by patient_id" in str(caught.value)
    assert "P017" not in str(caught.value)


def test_a_leak_is_listed_along_with_other_problems(folder: Path) -> None:
    text = (
        "path,label,patient_id,split\nimages/0.png,a,P1,train\nimages/1.png,,P2,val\nimages/2.png,b,P1,test\n"
    )
    found = problems_of(folder, text)
    assert found == ("row 3: label is empty", "the patient of rows 2, 4 is in train and test")


def test_targets_are_indices_and_refuse_what_is_not_labelled(folder: Path) -> None:
    manifest = load(folder, PLAIN)
    assert targets(manifest.task, manifest.samples).dtype == np.int64
    assert targets(manifest.task, []).shape == (0,)
    assert targets(Task("multilabel", ("x", "y")), []).shape == (0, 2)
    bare = [replace(sample, target=None) for sample in manifest.samples[:1]]
    with pytest.raises(LabelError, match="1 of 1 samples have no label"):
        targets(manifest.task, bare)


def test_labels_in_the_folder_are_found_and_their_absence_says_how_to_give_them(folder: Path) -> None:
    with pytest.raises(LabelError, match="give --labels"):
        load_manifest(folder, None, NOTHING)
    (folder / "labels.csv").write_text(PLAIN)
    assert len(load_manifest(folder, None, NOTHING).samples) == 3


def test_an_absent_folder_is_refused(folder: Path) -> None:
    table = folder.parent / "labels.csv"
    table.write_text(PLAIN)
    with pytest.raises(ReadError, match="file-missing"):
        load_manifest(folder / "nowhere", table, NOTHING)


def make_archive(path: Path, labels: dict[str, list]) -> Path:
    arrays = {}
    for part, rows in labels.items():
        arrays[f"{part}_images"] = np.zeros((len(rows), 4, 4), np.uint8)
        arrays[f"{part}_labels"] = np.array(rows).reshape(len(rows), -1)
    np.savez(path, **arrays)
    return path


def test_an_archive_brings_its_labels_and_its_split(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "set.npz", {"train": [0, 1, 1], "val": [1, 0], "test": [0]})
    for data in (path, tmp_path):
        manifest = load_manifest(data, None, TaskConfig(classes=("normal", "pneumonia")))
        assert manifest.task == Task("binary", ("normal", "pneumonia"))
        assert Counter(sample.split for sample in manifest.samples) == {"train": 3, "val": 2, "test": 1}
        by_item = {sample.series.item: sample for sample in manifest.samples}
        assert by_item["val/0"].target == 1
        assert by_item["val/0"].sample_id == "s" + hash_identifier("set.npz#val/0", length=10)


def test_an_archive_of_flags_is_multilabel(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "set.npz", {"train": [[0, 1, 0], [1, 1, 0]]})
    manifest = load_manifest(path, None, NOTHING)
    assert manifest.task == Task("multilabel", ("0", "1", "2"))
    assert manifest.samples[0].target == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        ([0, 1, 2], TaskConfig(classes=("a", "b"))),
        ([[0, 1], [2, 1]], NOTHING),
        ([[0, 1], [1, 1]], TaskConfig(classes=("a", "b", "c"))),
        ([0, 1], TaskConfig(kind="multilabel")),
    ],
    ids=["too-few-names", "no-flag", "too-many-names", "another-kind"],
)
def test_an_archive_that_does_not_fit_the_task_is_refused(
    tmp_path: Path, rows: list, config: TaskConfig
) -> None:
    path = make_archive(tmp_path / "set.npz", {"train": rows})
    with pytest.raises(LabelError):
        load_manifest(path, None, config)


def test_a_table_may_label_the_items_of_an_archive(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "set.npz", {"train": [0, 0]})
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ntrain/0,a\nset.npz#train/1,b\n")
    manifest = load_manifest(path, table, NOTHING)
    assert [sample.series.item for sample in manifest.samples] == ["train/0", "train/1"]


def test_thousands_of_rows_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    add_image(tmp_path / "images" / "0.png")
    content = (tmp_path / "images" / "0.png").read_bytes()
    for index in range(3000):
        (tmp_path / "images" / f"{index}.png").write_bytes(content)
    rows = [f"images/{index}.png,{'ab'[index % 2]}" for index in range(3000)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    started = time.process_time()
    assert len(load_manifest(tmp_path, None, NOTHING).samples) == 3000
    assert time.process_time() - started < 15 * slowness(time.process_time)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "classes", "samples", "patients"),
    [
        ("brain-mri-tumour", ("none", "glioma", "meningioma", "pituitary"), 2870, 2870),
        ("hippocampus-mri", ("large", "small"), 130, 130),
        ("chest-xray-pneumonia/pneumoniamnist.npz", ("0", "1"), 5232, 5232),
    ],
)
def test_real_tables_are_understood(
    shared_data: Path, name: str, classes: tuple[str, ...], samples: int, patients: int
) -> None:
    manifest = load_manifest(shared_data / name, None, NOTHING)
    assert manifest.task.classes == classes
    assert len({sample.sample_id for sample in manifest.samples}) == samples
    assert len({sample.patient_id for sample in manifest.samples}) == patients


@pytest.mark.shared
def test_real_dicom_series_are_found_by_folder_and_uid_and_grouped_by_their_patient(
    shared_data: Path, tmp_path: Path
) -> None:
    from pydicom import dcmread

    root = shared_data / "brain-mri-dicom"
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    uids = [dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID for folder in folders]
    table = tmp_path / "labels.csv"
    for column, cells in (("path", [folder.name for folder in folders]), ("SeriesInstanceUID", uids)):
        table.write_text(f"{column},label\n{cells[0]},a\n{cells[1]},b\n")
        manifest = load_manifest(root, table, NOTHING)
        assert [sample.series.path.name for sample in manifest.samples] == [folder.name for folder in folders]
        assert len({sample.patient_id for sample in manifest.samples}) == 1
        assert "no patient_id column: DICOM PatientID (hashed) groups the split" in manifest.notes
    table.write_text(f"path,label,patient_id\n{folders[0].name},a,X\n{folders[1].name},b,Y\n")
    notes = load_manifest(root, table, NOTHING).notes
    assert "1 DICOM patients have more than one patient_id: is it a patient's id?" in notes


def test_volumes_of_one_file_are_of_one_patient(make_nifti: Callable, tmp_path: Path) -> None:
    for number in range(2):
        make_nifti(np.random.default_rng(number).random((4, 5, 6, 2), np.float32), name=f"dwi{number}.nii.gz")
    names = [f"dwi{file}.nii.gz#volume/{volume}" for file in range(2) for volume in range(2)]
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)))
    samples = load_manifest(tmp_path, None, TaskConfig()).samples
    assert len({sample.sample_id for sample in samples}) == 4
    assert [sample.patient_id for sample in samples[::2]] == [sample.patient_id for sample in samples[1::2]]
    assert len({sample.patient_id for sample in samples}) == 2


def test_a_lone_file_of_several_volumes_needs_a_table(make_nifti: Callable) -> None:
    path = make_nifti(np.zeros((4, 5, 6, 3), np.float32), name="bold.nii.gz")
    with pytest.raises(LabelError) as caught:
        load_manifest(path, None, TaskConfig())
    assert caught.value.code == "label-table"


def test_series_of_one_study_are_of_one_patient_though_none_is_named(
    make_series: Callable, tmp_path: Path
) -> None:
    for patient in (1, 2):
        for folder in ("t1", "flair"):
            make_series(patient=patient, folder=f"{patient}/{folder}", PatientID="")
    rows = [f"{patient}/{folder},{'ab'[patient - 1]}" for patient in (1, 2) for folder in ("t1", "flair")]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    manifest = load_manifest(tmp_path, None, TaskConfig())
    patients = [sample.patient_id for sample in manifest.samples]
    assert patients[0] == patients[1] != patients[2] == patients[3]
    assert not any(has_patient_id(sample) for sample in manifest.samples)
    assert "no patient ids: each study is its own patient" in manifest.notes

"""medtl results: objects for the PACS about each study of a folder, and a line for what cannot have any."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from highdicom.sr import srread
from pydicom import dcmread

from medtl.pacs.objects.concepts import OOD_CHECK, OOD_VERDICTS, PREDICTED, PROBABILITY, THRESHOLD
from tests.cli import jobs
from tests.cli.conftest import Trained

CANARIES = ("canary", "19771231", "20010911", "1.2.826.0")


def results(run: Path, folder: Path, out: Path, *more: str) -> list[dict[str, str]]:
    """Run the command, which must end well, and return its table."""
    result = jobs.medtl("results", run, folder, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return jobs.read_rows(out / "results.csv")


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """Two radiographs."""
    for row in range(2):
        jobs.write_radiograph(
            tmp_path / "in" / f"CANARY-{row}.dcm", row, SOPInstanceUID=f"1.2.826.0.1.{row + 1}"
        )
    return tmp_path / "in"


def test_each_radiograph_gets_a_report_an_overlay_and_fhir(
    trained: Trained, radiographs: Path, tmp_path: Path
) -> None:
    rows = results(trained.run, radiographs, tmp_path / "out")
    assert [row["status"] for row in rows] == ["scored", "scored"]
    for row in rows:
        assert row["sr"] and row["sc"] and row["fhir"] and not row["map"]
        source = dcmread(radiographs / row["source"])
        report, overlay = dcmread(tmp_path / "out" / row["sr"]), dcmread(tmp_path / "out" / row["sc"])
        assert report.StudyInstanceUID == overlay.StudyInstanceUID == source.StudyInstanceUID
        assert report.PatientName == overlay.PatientName == source.PatientName
        (item,) = overlay.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_the_report_holds_what_medtl_score_says(trained: Trained, radiographs: Path, tmp_path: Path) -> None:
    jobs.medtl("score", trained.run, radiographs, "--out", tmp_path / "scores")
    scores = {row["sample_id"]: row for row in jobs.read_rows(tmp_path / "scores/scores.csv")}
    for row in results(trained.run, radiographs, tmp_path / "out"):
        score = scores[row["sample_id"]]
        report = srread(tmp_path / "out" / row["sr"])
        for group in report.content.get_image_measurement_groups():
            value = group.get_measurements()[0].value
            assert value == pytest.approx(float(score[f"p_{group.tracking_identifier}"]), abs=1e-6)
            (screened,) = group.get_qualitative_evaluations(OOD_CHECK)
            assert screened.value.meaning == OOD_VERDICTS[score["ood"]].meaning
        bundle = json.loads((tmp_path / "out" / row["fhir"]).read_text())
        assert score["predicted"] in bundle["entry"][0]["resource"]["conclusion"]


def test_volumes_get_a_map_on_their_slices(trained_3d: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    jobs.write_volume(folder / "a", 1, 1, FrameOfReferenceUID="1.2.826.0.9")
    (row,) = results(trained_3d.run, folder, tmp_path / "out")
    written = dcmread(tmp_path / "out" / row["map"])
    assert (written.NumberOfFrames, written.Rows, written.FrameOfReferenceUID) == (8, 16, "1.2.826.0.9")


def test_a_series_in_the_folder_itself_and_one_in_a_folder_of_its_name_get_their_own(
    trained_3d: Trained, tmp_path: Path
) -> None:
    jobs.write_volume(tmp_path / "study", 1, 1)
    jobs.write_volume(tmp_path / "study/study", 2, 0)
    score = jobs.medtl("score", trained_3d.run, tmp_path / "study", "--out", tmp_path / "scores")
    assert score.exit_code == 0, score.output
    scores = {row["source"]: row["p_lesion"] for row in jobs.read_rows(tmp_path / "scores/scores.csv")}
    rows = results(trained_3d.run, tmp_path / "study", tmp_path / "out", "--kind", "sr")
    for row, patient in zip(rows, ("CANARY-1", "CANARY-2"), strict=True):
        report = srread(tmp_path / "out" / row["sr"])
        groups = report.content.get_image_measurement_groups()
        found = {group.tracking_identifier: group.get_measurements()[0].value for group in groups}
        assert found["lesion"] == pytest.approx(float(scores[row["source"]]), abs=1e-6)
        assert report.PatientID == patient
    assert [row["source"] for row in rows] == ["./study", "study"]


def test_a_volume_without_a_frame_of_reference_gets_the_rest(trained_3d: Trained, tmp_path: Path) -> None:
    jobs.write_volume(tmp_path / "in/a", 1, 1)
    result = jobs.medtl("results", trained_3d.run, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 3 and "refused: [result-no-frame]" in result.stderr
    (row,) = jobs.read_rows(tmp_path / "out/results.csv")
    assert row["sr"] and row["sc"] and row["fhir"] and not row["map"]


def test_what_is_no_dicom_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl("results", trained.run, trained.data, "--out", tmp_path / "out")
    assert result.exit_code == 3 and result.stdout.startswith("0 objects about 0 series, 24 refused")
    assert result.stderr.count("refused: [result-no-study]") == 10 and "and 14 more: see" in result.stderr
    rows = jobs.read_rows(tmp_path / "out/results.csv")
    assert len(rows) == 24 and {row["status"] for row in rows} == {"refused"}
    assert not (tmp_path / "out/dicom").exists()


def test_a_damaged_study_is_a_line_and_the_others_go_on(
    trained: Trained, radiographs: Path, tmp_path: Path
) -> None:
    cut = next(radiographs.iterdir())
    cut.write_bytes(cut.read_bytes()[:-80])
    result = jobs.medtl("results", trained.run, radiographs, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 3
    found = sorted((row["status"], bool(row["files"])) for row in json.loads(result.stdout))
    assert found == [
        ("refused", False),
        ("scored", True),
    ]


def test_a_second_run_changes_no_object_and_another_folder_gets_the_same_uids(
    trained: Trained, radiographs: Path, tmp_path: Path
) -> None:
    results(trained.run, radiographs, tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*-s?.dcm"))
    before = [path.read_bytes() for path in files]
    results(trained.run, radiographs, tmp_path / "out")
    assert before == [path.read_bytes() for path in files] and len(files) == 4
    results(trained.run, radiographs, tmp_path / "other", "--any-modality")
    for path in files:
        other = dcmread(tmp_path / "other" / path.relative_to(tmp_path / "out"))
        assert other.SOPInstanceUID == dcmread(path).SOPInstanceUID


def test_objects_of_earlier_results_are_counted(trained: Trained, radiographs: Path, tmp_path: Path) -> None:
    command = ("results", trained.run, radiographs, "--out", tmp_path / "out", "--kind", "sr")
    assert "of earlier results" not in jobs.medtl(*command).stderr
    (tmp_path / "out/dicom/1.2.3-sr.dcm").write_bytes(b"of another model")
    assert "holds 1 more objects of earlier results" in jobs.medtl(*command).stderr


def test_one_kind_alone_may_be_asked_for(trained: Trained, radiographs: Path, tmp_path: Path) -> None:
    results(trained.run, radiographs, tmp_path / "out", "--kind", "sr")
    names = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(names) == 3 and sum(name.endswith("-sr.dcm") for name in names) == 2
    usage = jobs.medtl("results", trained.run, radiographs, "--out", tmp_path / "out", "--kind", "pdf")
    assert usage.exit_code == 2


def test_names_of_files_and_what_is_printed_tell_no_patient(
    trained: Trained, radiographs: Path, tmp_path: Path
) -> None:
    jobs.write_radiograph(radiographs / "b.dcm", 3, PatientName="CanaryAlone", PatientSex="canary")
    plain = radiographs.rename(tmp_path / "plain")
    for path in list(plain.iterdir()):
        path.rename(plain / f"{path.stat().st_ino}.dcm")
    result = jobs.medtl("--debug", "results", trained.run, plain, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = [result.output, (tmp_path / "out/results.csv").read_text()]
    told += [path.name for path in (tmp_path / "out").rglob("*")]
    assert not [word for word in CANARIES if word in "\n".join(told).lower()]


def test_results_may_not_lie_among_the_images(trained: Trained, radiographs: Path) -> None:
    result = jobs.medtl("results", trained.run, radiographs, "--out", radiographs / "results")
    assert jobs.fault(result) == "output-unwritable"
    assert not (radiographs / "results").exists()


def test_a_folder_that_is_missing_or_empty_is_one_line(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, code in (("absent", "file-missing"), ("empty", "folder-empty")):
        result = jobs.medtl("results", trained.run, tmp_path / folder, "--out", tmp_path / "out")
        assert jobs.fault(result) == code


def test_a_method_that_does_not_suit_is_refused_before_anything(
    trained: Trained, radiographs: Path, tmp_path: Path
) -> None:
    arguments = ["--out", tmp_path / "out", "--method", "attention-rollout"]
    assert jobs.fault(jobs.medtl("results", trained.run, radiographs, *arguments)) == "saliency-method"
    assert not (tmp_path / "out").exists()


def test_two_series_of_one_study_have_objects_of_their_own(trained: Trained, tmp_path: Path) -> None:
    for row in range(2):
        jobs.write_radiograph(tmp_path / f"in/{row}.dcm", row, StudyInstanceUID="1.2.3.4")
    shutil.copy(tmp_path / "in/0.dcm", tmp_path / "in/copy.dcm")
    rows = results(trained.run, tmp_path / "in", tmp_path / "out", "--kind", "sr")
    found = [dcmread(tmp_path / "out" / row["sr"]) for row in rows]
    assert [one.StudyInstanceUID for one in found] == ["1.2.3.4"] * 2
    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_no_half_object(
    fault: BaseException, trained: Trained, radiographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr("medtl.core.files.os.fsync", fail)
        result = jobs.medtl("results", trained.run, radiographs, "--out", tmp_path / "out")
    code = "output-unwritable" if isinstance(fault, OSError) else "interrupted"
    assert jobs.fault(result, 1 if isinstance(fault, OSError) else 130) == code
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(results(trained.run, radiographs, tmp_path / "out")) == 2


def test_findings_that_do_not_exclude_each_other_are_answered_one_by_one(tmp_path: Path) -> None:
    data, rows = tmp_path / "data", []
    for row in range(24):
        name = f"{row:02d}.dcm"
        jobs.write_radiograph(data / name, row, PatientID=f"P{row}", SOPInstanceUID=f"1.2.3.{row + 1}")
        rows.append({"path": name, "label_mass": str(row % 2), "label_=cmd()": str(row // 2 % 2)})
    jobs.write_labels(data, rows)
    assert jobs.train(data, tmp_path / "run").exit_code == 0
    table = results(
        tmp_path / "run", data, tmp_path / "out", "--kind", "sr", "--kind", "sc", "--kind", "fhir"
    )
    assert {len(row["predicted"].split("|")) for row in table} <= {1, 2} and len(table) == 24
    for row in table[:6]:
        groups = srread(tmp_path / "out" / row["sr"]).content.get_image_measurement_groups()
        answers = {
            group.tracking_identifier: group.get_qualitative_evaluations(PREDICTED)[0].value.meaning
            for group in groups
        }
        predicted = row["predicted"].removeprefix("'").split("|")
        assert answers == {name: "Yes" if name in predicted else "No" for name in ("mass", "=cmd()")}
        cuts = [group.get_measurements(THRESHOLD)[0].value for group in groups]
        probabilities = [group.get_measurements(PROBABILITY)[0].value for group in groups]
        for name, chance, cut in zip(answers, probabilities, cuts, strict=True):
            assert (chance >= cut - 1e-6) == (answers[name] == "Yes")


def test_two_contents_under_one_uid_are_both_refused(trained: Trained, tmp_path: Path) -> None:
    for row, name in enumerate(("a", "b", "c")):
        uid = f"1.2.826.0.1.{max(row, 1)}"
        jobs.write_radiograph(tmp_path / "in" / f"{name}.dcm", row, SOPInstanceUID=uid)
    result = jobs.medtl("results", trained.run, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 3 and result.stderr.count("refused: [result-ambiguous]") == 2
    (row,) = (row for row in jobs.read_rows(tmp_path / "out/results.csv") if row["status"] == "scored")
    assert row["source"] == "c.dcm" and row["sr"]

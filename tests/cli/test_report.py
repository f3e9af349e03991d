"""medtl report and medtl evaluate: pages that are whole, inert, and silent about who the patients are."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli import jobs
from tests.cli.conftest import Trained

PAYLOAD = "<img src=x>"  # fits the 16 characters of a code string
CANARIES = ("canary", "19771231", "20010911", "1.2.826.0", "1977-12-31", "2001-09-11")


def pages(out: Path) -> dict[str, str]:
    """Return every page below a folder."""
    return {str(p.relative_to(out)): p.read_text(encoding="utf-8") for p in sorted(out.rglob("*.html"))}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Radiographs whose names, fields and paths hold patient data, scripts and markup."""
    folder = tmp_path_factory.mktemp("hostile") / "Canary^Kim 19771231"
    jobs.write_radiograph(folder / "CANARY-1.dcm", 0)
    jobs.write_radiograph(
        folder / "<script>alert(1)<.dcm",
        1,
        BodyPartExamined=PAYLOAD,
        ViewPosition=PAYLOAD,
        Manufacturer=PAYLOAD,
    )
    jobs.write_radiograph(folder / "cut-canary.dcm", 2, BodyPartExamined=PAYLOAD)
    cut = folder / "cut-canary.dcm"
    cut.write_bytes(cut.read_bytes()[:-80])
    return folder


@pytest.fixture(scope="module")
def hostile_report(trained: Trained, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on those."""
    out = tmp_path_factory.mktemp("report") / "out"
    with jobs.tiny_backbones_registered():
        result = jobs.medtl("report", trained.run, hostile, "--out", out)
    assert result.exit_code == 3, result.output
    assert result.stdout.startswith("2 studies, 1 refused")
    return out


@pytest.mark.parametrize("name", ["trained", "trained_3d"])
def test_a_report_has_an_index_and_a_page_for_each_study(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data, run = request.getfixturevalue(name)
    result = jobs.medtl("report", run, data, "--out", tmp_path)
    assert result.exit_code == 0
    found = pages(tmp_path)
    studies = [page for page in found if page.startswith("studies/")]
    assert len(studies) == len(jobs.read_rows(data / "labels.csv"))
    assert all(f'href="{page}"' in found["index.html"] for page in studies)
    assert "threshold for lesion" in found["model.html"] and "90% coverage" in found["model.html"]
    for page in studies:
        assert "data:image/" in found[page] and "Grad-CAM" in found[page]


def test_every_link_of_a_report_leads_somewhere_inside_it(trained: Trained, tmp_path: Path) -> None:
    jobs.medtl("report", trained.run, trained.data, "--out", tmp_path)
    for name, text in pages(tmp_path).items():
        for link in re.findall(r'(?:href|src)="([^"#]+)"', text):
            if not link.startswith("data:"):
                target = (tmp_path / name).parent / link
                assert target.is_file() and target.resolve().is_relative_to(tmp_path.resolve()), link


def test_a_report_can_start_from_the_scores(trained: Trained, tmp_path: Path) -> None:
    jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "scores")
    assert jobs.medtl("report", trained.run, tmp_path / "scores", "--out", tmp_path / "a").exit_code == 0
    assert jobs.medtl("report", trained.run, trained.data, "--out", tmp_path / "b").exit_code == 0
    assert pages(tmp_path / "a") == pages(tmp_path / "b")
    shown = {Path(page).stem for page in pages(tmp_path / "a") if page.startswith("studies/")}
    assert shown == {row["sample_id"] for row in jobs.read_rows(tmp_path / "scores/scores.csv")}


def test_no_page_tells_who_the_patients_are(hostile: Path, hostile_report: Path) -> None:
    files = [path for path in hostile_report.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace").lower()
        for word in (*CANARIES, str(hostile).lower(), hostile.name.lower()):
            assert word not in text, (path.name, word)
            assert word not in path.name.lower()


def test_payloads_in_names_and_fields_are_inert(
    hostile_report: Path, trained: Trained, tmp_path: Path
) -> None:
    jobs.write_radiograph(tmp_path / "plain/a.dcm")
    jobs.medtl("report", trained.run, tmp_path / "plain", "--out", tmp_path / "out")
    plain = pages(tmp_path / "out")
    (study,) = [text for name, text in plain.items() if name.startswith("studies/")]
    for name, text in pages(hostile_report).items():
        expected = study if name.startswith("studies/") else plain[name]
        assert PAYLOAD not in text and "alert(1)" not in text
        assert text.count("<script") == expected.count("<script")
        assert "Content-Security-Policy" in text and "http://" not in re.sub(r"http://www\.w3\.org", "", text)


def test_the_refused_are_listed_with_code_and_reason(hostile_report: Path) -> None:
    index = pages(hostile_report)["index.html"]
    assert "dicom-truncated" in index or "dicom-pixels" in index


def test_classes_with_markup_are_inert(tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", ("normal", "<script>alert(1)</script>"))
    assert jobs.train(data, tmp_path / "run").exit_code == 0
    assert jobs.medtl("report", tmp_path / "run", data, "--out", tmp_path / "report").exit_code == 0
    arguments = ["evaluate", tmp_path / "run", "--data", data, "--out", tmp_path / "evaluation"]
    assert jobs.medtl(*arguments).exit_code == 0
    for folder in ("report", "evaluation"):
        for name, text in pages(tmp_path / folder).items():
            assert "<script>alert" not in text, name
            assert "&lt;script&gt;" in text or name.startswith("model")


@pytest.mark.parametrize(("part", "count"), [("unseen", 8), ("train", 16), ("val", 8), ("all", 24)])
def test_evaluate_judges_the_part_that_was_asked_for(
    part: str, count: int, trained: Trained, tmp_path: Path
) -> None:
    arguments = ["--data", trained.data, "--out", tmp_path, "--part", part, "--json"]
    result = jobs.medtl("evaluate", trained.run, *arguments)
    assert result.exit_code == 0
    metrics = json.loads(result.stdout)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["counts"]["samples"] == count and metrics["part"] == part
    assert (tmp_path / "evaluation.html").is_file()


def test_validation_numbers_are_those_of_training(trained: Trained, tmp_path: Path) -> None:
    jobs.medtl("evaluate", trained.run, "--data", trained.data, "--out", tmp_path, "--part", "val")
    found = json.loads((tmp_path / "metrics.json").read_text())
    of_training = json.loads((trained.run / "metrics.json").read_text())["split"]["val"]
    for name in ("auroc", "accuracy", "brier"):
        assert found[name] == pytest.approx(of_training[name], abs=1e-6)


def test_training_images_are_recognised_under_other_names(trained: Trained, tmp_path: Path) -> None:
    data, rows = tmp_path / "renamed", []
    for row in jobs.read_rows(trained.data / "labels.csv"):
        name = "copy-of-" + Path(row["path"]).name
        (data / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.data / row["path"], data / name)
        rows.append({**row, "path": name})
    jobs.write_labels(data, rows)
    jobs.medtl("evaluate", trained.run, "--data", data, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["counts"]["samples"] == 8


def test_evaluating_on_what_taught_the_model_says_so(trained: Trained, tmp_path: Path) -> None:
    arguments = ["evaluate", trained.run, "--data", trained.data, "--out", tmp_path, "--part", "all"]
    assert "16 of them trained the model: metrics are too optimistic" in jobs.medtl(*arguments).stderr


def test_an_evaluation_does_not_tell_who_the_patients_are(trained_3d: Trained, tmp_path: Path) -> None:
    jobs.medtl("evaluate", trained_3d.run, "--data", trained_3d.data, "--out", tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"metrics.json", "evaluation.html"} <= {path.name for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in (*CANARIES, str(trained_3d.data)) if word in text], path.name


def test_an_evaluation_with_a_damaged_image_goes_on_without_it(trained: Trained, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    for name, content in (("000", b""), ("001", (data / "images/001.png").read_bytes()[:-50])):
        (data / f"images/{name}.png").write_bytes(content)
    arguments = ["evaluate", trained.run, "--data", data, "--out", tmp_path / "out", "--part", "all"]
    result = jobs.medtl(*arguments)
    assert result.exit_code == 3
    assert "refused: [raster-damaged]" in result.stderr and "refused: [file-empty]" in result.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text())["counts"]["samples"] == 22


def test_a_report_says_whether_its_maps_were_checked(trained: Trained, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=6)
    for count, word in (("2", "Checked on "), ("0", "was not checked.")):
        result = jobs.medtl("report", trained.run, data, "--out", tmp_path / count, "--check-images", count)
        assert result.exit_code == 0
        found = pages(tmp_path / count)
        assert all(word in text for name, text in found.items() if not name.startswith("model")), count


def test_pages_go_neither_into_the_run_nor_among_the_images(own_run: Path, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=2)
    for out in (own_run, data, data / "pages"):
        result = jobs.medtl("report", own_run, data, "--out", out)
        assert jobs.fault(result) == "output-unwritable"
        assert not list(out.rglob("*.html"))


def test_a_report_quotes_an_audit_of_the_same_model(trained: Trained, own_run: Path, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=6)
    audited = ["--audit", "--audit-images", "2", "--method", "grad-cam"]
    jobs.medtl("explain", trained.run, data, "--out", tmp_path / "maps", *audited)
    arguments = ["report", trained.run, data, "--out", tmp_path / "out", "--audit", tmp_path / "maps"]
    assert jobs.medtl(*arguments).exit_code == 0
    assert "By medtl explain --audit: checked on" in pages(tmp_path / "out")["index.html"]
    record = tmp_path / "maps/audit.json"
    record.write_text(record.read_text().replace('"model_sha256": "', '"model_sha256": "0'))
    assert jobs.fault(jobs.medtl(*arguments)) == "run-changed"
    record.write_text("[]")
    assert jobs.fault(jobs.medtl(*arguments)) == "scores-damaged"


def test_methods_are_chosen_by_name(trained: Trained, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=2)
    arguments = ["report", trained.run, data, "--out", tmp_path / "out", "--check-images", "0"]
    named = ["--method", "occlusion", "--method", "grad-cam"]
    assert jobs.medtl(*arguments, *named).exit_code == 0
    for name, text in pages(tmp_path / "out").items():
        if name.startswith("studies/"):
            assert "Methods side by side" in text and text.count('<figure class="method">') == 2
    assert jobs.fault(jobs.medtl(*arguments, "--method", "attention-rollout")) == "saliency-method"


def test_patients_are_named_only_where_it_is_asked_for(
    trained: Trained, hostile: Path, tmp_path: Path
) -> None:
    result = jobs.medtl("report", trained.run, hostile, "--out", tmp_path, "--with-identifiers")
    assert result.exit_code == 3
    found = pages(tmp_path)
    studies = [text for name, text in found.items() if name.startswith("studies/")]
    assert all("Canary^Kim" in text and "identifies the patient" in text for text in studies)
    assert any("&lt;script&gt;alert(1)&lt;.dcm" in text for text in studies)
    assert not any("<script>alert" in text for text in found.values())
    assert "CANARY-1.dcm" in found["index.html"] and "These pages identify patients" in found["index.html"]


def test_a_report_on_a_run_shows_where_it_was_wrong(own_run: Path, trained: Trained, tmp_path: Path) -> None:
    table = own_run / "predictions.csv"
    rows = jobs.read_rows(table)
    for row in rows:  # what is true of each is turned round, so each is wrong
        row["target"] = {"normal": "lesion", "lesion": "normal"}[row["target"]]
    table.write_text(",".join(rows[0]) + "\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    result = jobs.medtl("report", own_run, "--data", trained.data, "--out", tmp_path / "out")
    assert result.exit_code == 0
    text = pages(tmp_path / "out")["index.html"]
    assert "Most confident errors" in text and "Frozen and trained layer groups" in text
    shown = re.findall(r'src="(images/[0-9a-f]+\.jpg)"', text)
    assert shown and all((tmp_path / "out" / path).is_file() for path in shown)
    assert not [word for word in CANARIES if word in text.lower()]
    assert jobs.medtl("report", own_run, "--out", tmp_path / "plain").exit_code == 0
    assert "--data" in pages(tmp_path / "plain")["index.html"]


def test_data_of_a_run_go_with_no_source(trained: Trained, tmp_path: Path) -> None:
    arguments = [trained.run, trained.data, "--data", trained.data, "--out", tmp_path]
    assert jobs.medtl("report", *arguments).exit_code == 2
    assert jobs.fault(jobs.medtl("report", tmp_path / "none", "--out", tmp_path))


def test_studies_that_differ_from_their_labels_come_first(trained: Trained, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=6)
    rows = jobs.read_rows(data / "labels.csv")
    arguments = ["report", trained.run, data, "--out", tmp_path / "out", "--check-images", "0"]
    labels = ["--labels", data / "labels.csv"]
    assert jobs.medtl(*arguments, *labels).exit_code == 0
    index = pages(tmp_path / "out")["index.html"]
    right = set(re.findall(r'data-label="(\w+)"', index))
    swapped = {"normal": "lesion", "lesion": "normal"}
    jobs.write_labels(data, [{**row, "label": swapped[row["label"]]} for row in rows])
    assert jobs.medtl(*arguments, *labels).exit_code == 0
    found = re.findall(r'data-label="(\w+)"', pages(tmp_path / "out")["index.html"])
    assert len(found) == 6 and right <= {"agrees", "differs"}
    assert found == sorted(found, reverse=True), "those that differ come before those that agree"
    assert {"agrees": "differs", "differs": "agrees"}[found[0]] in right
    assert jobs.fault(jobs.medtl(*arguments, "--labels", tmp_path / "none.csv"))

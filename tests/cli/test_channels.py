"""Volumes of one file as channels of one image: every command takes them, and no other number of channels."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.display import make_display
from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Reading
from tests.cli import jobs

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPES = {"4 volumes": (16, 16, 8, 4), "2 volumes of one slice": (20, 24, 1, 2)}


def write_studies(folder: Path, shape: tuple[int, ...], count: int = 12) -> Path:
    """Write files of several volumes, of which the last one alone says which class it is."""
    folder.mkdir(parents=True)
    rows = []
    for patient in range(count):
        spatial, channels = shape[:3], shape[3]
        volumes = [jobs.draw(10 * patient + number, 0, spatial) for number in range(channels - 1)]
        drawn = jobs.draw(patient, patient % 2, spatial[:2])
        volumes.append(np.broadcast_to(drawn[..., None], spatial))
        values = np.stack(volumes, axis=-1).astype(np.int16) * np.array([1, 100, 3, 7][:channels], np.int16)
        nibabel.Nifti1Image(values, AFFINE).to_filename(folder / f"{patient:02d}.nii.gz")
        rows.append({"path": f"{patient:02d}.nii.gz", "label": ("normal", "lesion")[patient % 2]})
    jobs.write_labels(folder, rows)
    return folder


def recipe(shape: tuple[int, ...]) -> tuple[str, ...]:
    size = "[8,16,16]" if shape[2] > 1 else "[1,32,32]"
    channels = f"preprocessing.channels={shape[3]}"
    return (
        *jobs.SETTINGS_3D,
        f"preprocessing.size={size}",
        "preprocessing.volumes_as_channels=true",
        channels,
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_train_score_explain_and_export_take_them(
    tmp_path: Path, tiny_backbones: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    studies, run, out = write_studies(tmp_path / "studies", shape), tmp_path / "run", tmp_path / "out"
    trained = jobs.train(studies, run, overrides=recipe(shape), modality="mri")
    assert trained.exit_code == 0, trained.output
    scored = jobs.medtl("score", run, studies, "--out", out, "--any-modality")
    assert scored.exit_code == 0, scored.output
    assert [row["status"] for row in jobs.read_rows(out / "scores.csv")] == ["scored"] * 12
    explained = jobs.medtl("explain", run, studies / "00.nii.gz", "--out", tmp_path / "maps")
    assert explained.exit_code == 0, explained.output
    (heatmap,) = (tmp_path / "maps").rglob("*.nii.gz")
    assert nibabel.load(heatmap).shape == shape[:3]  # type: ignore[attr-defined]
    reported = jobs.medtl("report", run, studies / "00.nii.gz", "--out", tmp_path / "pages")
    assert reported.exit_code == 0, reported.output
    exported = jobs.medtl("export", run, "--out", tmp_path / "bundle", "--to", "monai-bundle")
    assert exported.exit_code == 0, exported.output
    metadata = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == shape[3]


def test_files_of_another_number_are_refused(
    tmp_path: Path, tiny_backbones: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    shape = SHAPES["4 volumes"]
    studies = write_studies(tmp_path / "studies", shape)
    assert jobs.train(studies, tmp_path / "run", overrides=recipe(shape), modality="mri").exit_code == 0
    for channels in (1, 3):
        values = np.zeros((16, 16, 8, channels), np.int16)
        nibabel.Nifti1Image(values, AFFINE).to_filename(studies / f"other-{channels}.nii.gz")
    scored = jobs.medtl("score", tmp_path / "run", studies, "--out", tmp_path / "out", "--any-modality")
    assert scored.exit_code == 3, scored.output
    rows = jobs.read_rows(tmp_path / "out/scores.csv")
    refused = [row["code"] for row in rows if row["status"] == "refused"]
    assert refused == ["image-channels"] * 2 and len(rows) == 14


def volumes(tmp_path: Path, channels: int) -> tuple[Image, np.ndarray]:
    """Return an image of as many channels, and the values that it was written from."""
    values = np.random.default_rng(0).integers(0, 100, (12, 10, 8, channels)).astype(np.int16)
    values *= np.array([1, 200, 3, 7][:channels], np.int16)
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)
    (series,) = scan(path, reading=Reading(volumes_as_channels=True)).series
    return read_series(series), values


def test_each_channel_has_intensities_of_its_own(tmp_path: Path) -> None:
    image, _ = volumes(tmp_path, 4)
    config = PreprocessingConfig(size=(8, 10, 12), channels=4, volumes_as_channels=True)
    pixels = prepare_image(image, config).pixels
    assert pixels.shape == (4, 8, 10, 12)
    assert pixels.min(axis=(1, 2, 3)).tolist() == [0] * 4 and pixels.max(axis=(1, 2, 3)).tolist() == [1] * 4


@pytest.mark.parametrize("channels", [1, 3])
def test_modalities_are_never_taken_for_colours(tmp_path: Path, channels: int) -> None:
    image, values = volumes(tmp_path, 4 - channels or 3)
    config = PreprocessingConfig(size=(8, 10, 12), channels=channels, volumes_as_channels=True)
    if image.pixels.shape[0] != channels:
        with pytest.raises(ReadError, match="image-channels"):
            prepare_image(image, config)
    np.testing.assert_array_equal(
        np.sort(make_display(image).values.ravel()), np.sort(values[..., 0].ravel())
    )


def test_other_numbers_than_grey_and_colour_need_the_option() -> None:
    with pytest.raises(ValueError, match="needs volumes_as_channels: true"):
        PreprocessingConfig(channels=4)

"""One trained run of each kind for all tests of the commands; tests that change a run copy it first."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli import jobs


class Trained(NamedTuple):
    """A labelled folder and the run that was trained on it."""

    data: Path
    run: Path


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    """Take back the handler that the front door sets in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNGs with normal and lesion labels."""
    return jobs.write_images(tmp_path_factory.mktemp("studies") / "canary-folder")


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of MR series with normal and lesion labels."""
    return jobs.write_volumes(tmp_path_factory.mktemp("volumes") / "canary-folder")


@pytest.fixture(scope="session")
def trained(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A 2D run."""
    return _train(studies, tmp_path_factory.mktemp("runs") / "run", modality="xray")


@pytest.fixture(scope="session")
def trained_3d(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A 3D run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return _train(volumes, run, modality="mri", overrides=jobs.SETTINGS_3D)


@pytest.fixture
def own_run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the 2D run, to be damaged."""
    return Path(shutil.copytree(trained.run, tmp_path / "own-run"))


def _train(data: Path, run: Path, **options: object) -> Trained:
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(run.parent / "home"))
        patch.setenv("MEDTL_SALT", "test")
        result = jobs.train(data, run, **options)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return Trained(data, run)

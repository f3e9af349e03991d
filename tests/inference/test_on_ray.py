"""Workers of a Ray cluster give the rows of this machine, to the bit, also where one is killed on the way."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medtl.core.journal import open_journal
from medtl.core.progress import StoppedError, never
from medtl.errors import CheckpointError, TrainingError
from medtl.imaging.reader import scan
from medtl.inference import on_ray, streaming
from medtl.inference.ensemble import Ensemble, make_ensemble
from medtl.inference.on_ray import Job, work_on_ray
from medtl.inference.predictor import Prediction
from medtl.inference.streaming import Scoring
from tests.inference.test_streaming import Make, draw_folder, make_checkpoint, score

__all__ = ["make_checkpoint"]  # the fixture

STUDIES = 48


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def score_on_ray(
    ensemble: Ensemble, folder: Path, out: Path, stop: Callable[[], bool] = never
) -> list[Prediction]:
    found = scan(folder)
    with open_journal(out) as journal:
        journal.open_for(ensemble.facts)
        scoring = Scoring(ensemble, folder, journal, cluster="ray", stop=stop)
        for _ in scoring.stream(scoring.unscored(found, try_again=True)):
            pass
        return list(scoring.rows(found))


def die_once(flag: Path, score: Callable[..., Any], *arguments: Any) -> Any:
    """Score a batch; the worker that comes first is killed instead."""
    with suppress(FileExistsError):
        flag.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return score(*arguments)


def test_rows_are_those_of_this_machine_also_where_a_worker_is_killed(
    cluster: None, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_folder(tmp_path / "studies", STUDIES, bad=(1, 10))
    ensemble = make_ensemble([make_checkpoint()])
    alone, _ = score(ensemble, folder, tmp_path / "alone")
    deadly = partial(die_once, tmp_path / "killed", streaming._score_batch)
    monkeypatch.setattr(streaming, "_score_batch", deadly)
    rows = score_on_ray(ensemble, folder, tmp_path / "together")
    assert rows == alone and len(rows) == STUDIES
    assert (tmp_path / "killed").exists()


def test_a_stopped_scoring_goes_on_to_the_same_rows(
    cluster: None, make_checkpoint: Make, tmp_path: Path
) -> None:
    folder = draw_folder(tmp_path / "studies", 12)
    ensemble = make_ensemble([make_checkpoint()])
    with pytest.raises(StoppedError):
        score_on_ray(ensemble, folder, tmp_path / "out", lambda: True)
    assert score_on_ray(ensemble, folder, tmp_path / "out") == score(ensemble, folder, tmp_path / "alone")[0]


def test_an_error_with_a_code_arrives_as_it_is(cluster: None, make_checkpoint: Make, tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "studies", 5)
    with pytest.raises(CheckpointError) as caught:
        score_on_ray(make_ensemble([make_checkpoint(shift=float("nan"))]), folder, tmp_path / "out")
    assert caught.value.code == "scores-invalid"


def test_a_batch_that_ends_each_worker_is_one_error(
    cluster: None, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    ensemble = make_ensemble([make_checkpoint()])
    job = Job(os._exit, ensemble, tmp_path, ensemble.facts)
    with pytest.raises(TrainingError) as caught:
        list(work_on_ray(job, [1], None))
    assert caught.value.code == "worker-lost" and "run the same command to resume" in caught.value.fix


def test_a_worker_that_differs_or_sees_no_files_is_refused_by_name(
    cluster: None, make_checkpoint: Make, tmp_path: Path
) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    other = Job(str, ensemble, tmp_path, {**ensemble.facts, "torch": "1.0"})
    blind = Job(str, ensemble, tmp_path / "not mounted", ensemble.facts)
    for job, said in ((other, "differs in torch"), (blind, "not mounted")):
        with pytest.raises(TrainingError) as caught:
            list(work_on_ray(job, [1], None))
        assert caught.value.code == "cluster-differs" and said in str(caught.value)


def test_nothing_to_do_needs_no_cluster(make_checkpoint: Make, tmp_path: Path) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    assert list(work_on_ray(Job(str, ensemble, tmp_path, {}), [], None)) == []

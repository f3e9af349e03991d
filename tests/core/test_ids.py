"""Ids are hashes with the user's own salt, made once, never silently another; seeds have a purpose."""

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from medtl.core.ids import derive_seed, hash_identifier
from medtl.errors import OutputError


@pytest.fixture
def salt(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the salt of a user lies who has set none."""
    monkeypatch.delenv("MEDTL_SALT")
    return own_home / "salt"


def test_a_salt_is_made_once_and_read_by_its_user_alone(salt: Path) -> None:
    first = hash_identifier("PATIENT-1")
    assert salt.stat().st_mode & 0o777 == 0o600 and len(salt.read_bytes()) == 32
    assert hash_identifier("PATIENT-1") == first != hash_identifier("PATIENT-2")
    assert hash_identifier("") == ""


def test_no_id_can_be_found_again_without_the_salt(salt: Path) -> None:
    key = hash_identifier("PATIENT-1")
    bare = [hashlib.new(name, b"PATIENT-1").hexdigest() for name in ("md5", "sha256", "blake2b")]
    assert not [found for found in bare if key in found]


def test_a_salt_that_is_lost_gives_other_ids(
    salt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hash_identifier("PATIENT-1")
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "new"))
    assert hash_identifier("PATIENT-1") != first
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored/salt").write_bytes(salt.read_bytes())
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "restored"))
    assert hash_identifier("PATIENT-1") == first


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33], ids=len)
def test_a_salt_that_is_none_is_refused(content: bytes, salt: Path) -> None:
    salt.write_bytes(content)
    with pytest.raises(OutputError, match=r"salt-damaged.*remove it: then all ids change"):
        hash_identifier("PATIENT-1")


def test_a_salt_that_cannot_be_written_leaves_nothing(salt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"output-unwritable.*Operation not permitted"):
        hash_identifier("PATIENT-1")
    assert not list(salt.parent.iterdir())


def _ask(home: str) -> str:
    os.environ["MEDTL_HOME"] = home
    return hash_identifier("PATIENT-1")


def test_processes_that_start_at_once_agree_on_one_salt(salt: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_ask, [str(salt.parent)] * 16))) == 1


def test_seeds_depend_on_what_they_are_for():
    assert derive_seed(0, "order", 1, 2) == derive_seed(0, "order", 1, 2)
    assert (
        len({derive_seed(0, "order", 1, 2), derive_seed(0, "order", 12), derive_seed(0, "step", 1, 2)}) == 3
    )

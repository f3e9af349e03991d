"""Salted hashes in place of identifiers, so that patients can be told apart and not recognised."""

import hashlib
import os
import secrets
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from medtl.imaging.locations import medtl_home


def hash_identifier(value: str, *, length: int = 12) -> str:
    """Return a salted, irreversible key for an identifier; empty for an empty one.

    The salt is $MEDTL_SALT, or a random one that is made once and kept in the user's medtl home.
    """
    if not value:
        return ""
    return hashlib.blake2b(value.encode(), key=_salt(), digest_size=16).hexdigest()[:length]


def _salt() -> bytes:
    given = os.environ.get("MEDTL_SALT", "")
    return hashlib.sha256(given.encode()).digest() if given else _kept_salt(medtl_home() / "salt")


@cache
def _kept_salt(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent) as whole, suppress(FileExistsError):
            whole.write(secrets.token_bytes(32))
            whole.flush()
            path.hardlink_to(whole.name)  # whole or absent, and never a second one
    return path.read_bytes()

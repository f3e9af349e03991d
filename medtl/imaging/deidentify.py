"""Salted hashes in place of identifiers, so that patients can be told apart and not recognised."""

import hashlib
import os
import secrets
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
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()

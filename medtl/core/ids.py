"""Salted hashes in place of identifiers, so that patients can be told apart and not recognised."""

import hashlib
import os
import secrets
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from medtl.core.files import medtl_home, unwritable
from medtl.errors import OutputError

SALT_BYTES = 32


def hash_identifier(value: str, *, length: int = 12) -> str:
    """Return a salted, irreversible key for an identifier; empty for an empty one.

    The salt is $MEDTL_SALT, or a random one that is made once and kept in the user's medtl home. Raises
    OutputError output-unwritable, salt-damaged.
    """
    if not value:
        return ""
    return hashlib.blake2b(value.encode(), key=_salt(), digest_size=16).hexdigest()[:length]


def _salt() -> bytes:
    given = os.environ.get("MEDTL_SALT", "")
    return hashlib.sha256(given.encode()).digest() if given else _kept_salt(medtl_home() / "salt")


@cache
def _kept_salt(path: Path) -> bytes:
    try:
        if not path.exists():
            _make_salt(path)
        salt = path.read_bytes()
    except OSError as error:
        raise unwritable(path, error) from error
    # With an empty or shortened one anybody could find out which id a hash is of.
    if len(salt) != SALT_BYTES:
        fix = "restore it, or remove it: then all ids change"
        raise OutputError("salt-damaged", f"is no salt: it has {len(salt)} bytes", where=path, fix=fix)
    return salt


def _make_salt(path: Path) -> None:
    """Make a salt that its user alone can read: whole or absent, and never a second one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent) as whole, suppress(FileExistsError):
        whole.write(secrets.token_bytes(SALT_BYTES))
        whole.flush()
        os.fsync(whole.fileno())
        path.hardlink_to(whole.name)

"""Ids and seeds made by hashing: ids that name no patient, seeds that depend on their purpose alone."""

import hashlib
import os
import secrets
from functools import cache
from pathlib import Path

import numpy as np

from medtl.core.files import medtl_home, replacing, writing
from medtl.core.staging import remove_lock, wait_for_lock
from medtl.errors import OutputError

SALT_BYTES = 32


def hash_identifier(value: str, *, length: int = 12) -> str:
    """Return a salted, irreversible key for an identifier; empty for an empty one.

    The salt is $MEDTL_SALT, or a random one that is made once and kept in the user's medtl home. Raises
    OutputError output-unwritable, salt-damaged.
    """
    if not value:
        return ""
    given = os.environ.get("MEDTL_SALT", "")
    salt = hashlib.sha256(given.encode()).digest() if given else _stored_salt(medtl_home() / "salt")
    return hashlib.blake2b(value.encode(), key=salt, digest_size=16).hexdigest()[:length]


@cache
def _stored_salt(path: Path) -> bytes:
    """Return the salt, made where there is none: one that its user alone can read, and never a second one."""
    with writing(path):
        if not path.exists():
            lock_path = path.with_name(".salt.lock")
            with wait_for_lock(lock_path) as lock:
                lock.callback(remove_lock, lock_path)
                if not path.exists():
                    with replacing(path, mode=0o600) as temporary:
                        temporary.write_bytes(secrets.token_bytes(SALT_BYTES))
        salt = path.read_bytes()
    # With an empty or shortened one anybody could find out which id a hash is of.
    if len(salt) != SALT_BYTES:
        fix = "restore it, or remove it: then all ids change"
        raise OutputError("salt-damaged", f"is no salt: it has {len(salt)} bytes", where=path, fix=fix)
    return salt


def derive_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """Return a 63-bit seed for one purpose at one place, for example ("augment", epoch, sample_id).

    It never depends on the order of calls, so that any step can be repeated.
    """
    text = "\x1f".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def make_generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """Return a numpy generator seeded by derive_seed."""
    return np.random.default_rng(derive_seed(seed, purpose, *counters))

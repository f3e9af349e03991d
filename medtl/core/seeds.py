"""Random generators seeded by what they are for, never by call order, so that any step can be repeated."""

import hashlib

import numpy as np


def derive_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """Return a 63-bit seed for one purpose at one place, for example ("augment", epoch, sample_id)."""
    text = "\x1f".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def make_generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """Return a numpy generator seeded by derive_seed."""
    return np.random.default_rng(derive_seed(seed, purpose, *counters))

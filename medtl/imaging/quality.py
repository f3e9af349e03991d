"""Say what is odd about an image that was read exactly: worth a word to the user, no reason to refuse it."""

from typing import NamedTuple

from medtl.imaging.image import Image


class Oddity(NamedTuple):
    """One oddity: its code, a key of medtl.errors.CODES, and one phrase."""

    code: str
    reason: str


def find_oddity(image: Image) -> Oddity | None:
    """Return what is odd about the pixels of an image, None where nothing is."""
    if image.pixels.min() == image.pixels.max():
        return Oddity("image-constant", "every pixel has the same value")
    return None

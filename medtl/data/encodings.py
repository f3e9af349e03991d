"""BYTES OF A TABLE -> TEXT, in an encoding that is certain or that the user names; never a guess at letters.

A table without a byte order mark that is not UTF-8 is read as Windows-1252 only where other code pages of
Latin letters have each letter beyond ASCII at the same byte, and it stands as in a word. In Chinese,
Japanese, Korean, Cyrillic, Greek, Arabic or Hebrew tables, such letters stand in rows or apart from ASCII
letters; in those of DOS and old Macs they become other letters and signs.
"""

import codecs
import difflib
import encodings.aliases
import re

NOT_UTF8 = "the label table is not UTF-8; it was read as Windows-1252: check letters with accents"

LOST_LETTERS = "the label table holds marks of letters that an earlier conversion lost (\ufffd)"

# Each mark with its encoding; UTF-32 before UTF-16, whose mark it begins with.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What a table needs to be read in any case.
SAVE_MARKED = "save it as CSV UTF-8 with a byte order mark"
# Codecs of Python that are not encodings of text files.
NO_ENCODINGS = frozenset(
    {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
)

# Letters that Windows' Western, Central European, Turkish and Baltic code pages have at one byte. Most stand
# alone, but not in Fußödem, vergrößert, pää and créée.
AGREED = "ÄÉÓÖÜßäéóöü"
LETTERS = f"(?:[{AGREED}]|[äöüß]{{2,3}}|éé)"
WESTERN = re.compile(
    rf"(?<![^\x00-\x7f])(?:(?<=[a-z]){LETTERS}|{LETTERS}(?=[a-z]))(?![^\x00-\x7f])", re.IGNORECASE
)
# What no word is: one with a capital within it, or with less than two ASCII letters.
MISPLACED_CAPITAL = re.compile(r"[a-zßäéóöü][ÄÉÓÖÜ]")
SHORT_WORD = re.compile(
    rf"(?<![a-z{AGREED}])(?:[a-z]?[{AGREED}]+|[{AGREED}]+[a-z])(?![a-z{AGREED}])", re.IGNORECASE
)


class EncodingError(Exception):
    """Bytes are not text in any encoding that is certain; args: the reason and the fix, a phrase each."""


def decode(content: bytes, encoding: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the text of a table, and notes on what was taken for certain though it is not quite.

    encoding: what the user says it is; a byte order mark says it better. Raises EncodingError.
    """
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if marked or encoding:
        return _noting_lost(_decode_as(content, marked or _checked(encoding or ""), bool(marked)))
    text = _try(content, "utf-8")
    if text is not None and "\0" not in text:
        return _noting_lost(text)
    if wide := _wide_encoding(content):
        raise EncodingError(
            "seems to be UTF-16 without a mark", f"save it as CSV UTF-8, or set task.encoding={wide}"
        )
    text = _try(content, "cp1252")
    if text is None or "\0" in text or not _reads_western(text):
        if b"\0" in content:
            raise EncodingError("is not text", "save the table as CSV in UTF-8")
        fix = "save it as CSV UTF-8, or set task.encoding in the recipe (gbk, shift_jis, cp1251, cp1252 ...)"
        raise EncodingError("is not UTF-8", fix)
    return text, (NOT_UTF8,)


def known_encoding(name: str) -> str:
    """Return Python's name of an encoding. Raises ValueError, which names the nearest."""
    if found := _codec_of_text(name):
        return found
    aliases = encodings.aliases.aliases
    texts = {codec for codec in aliases.values() if _codec_of_text(codec)}
    known = {alias: codec for alias, codec in aliases.items() if codec in texts} | {one: one for one in texts}
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=1)
    hint = f", did you mean {known[near[0]]}?" if near else " in Python's list of standard encodings"
    raise ValueError(f"no encoding {name!r}{hint}")


def _checked(name: str) -> str:
    try:
        return known_encoding(name)
    except ValueError as error:
        raise EncodingError(str(error), "name one that Python knows, such as gbk") from error


def _noting_lost(text: str) -> tuple[str, tuple[str, ...]]:
    return text, (LOST_LETTERS,) if "\ufffd" in text else ()


def _decode_as(content: bytes, encoding: str, marked: bool) -> str:
    text = _try(content, encoding)
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    if text is None or "\0" in text or (wide and b"\0" not in content):
        fix = "save it again as CSV UTF-8" if marked else f"{SAVE_MARKED}, or correct task.encoding"
        raise EncodingError(f"is not text in {encoding.removesuffix('-sig')}", fix)
    if not marked and not codecs.lookup(encoding).name.startswith("utf") and not content.isascii():
        other = _try(content, "utf-8")
        if other is not None and other != text:
            raise EncodingError(f"may be in UTF-8 or in {encoding}", SAVE_MARKED)
    return text


def _codec_of_text(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name
        b"a".decode(name)
    except UnicodeDecodeError:
        pass  # its units are longer
    except (LookupError, ValueError):
        return None
    return None if found.replace("-", "_") in NO_ENCODINGS else found


def _try(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeError:
        return None


def _wide_encoding(content: bytes) -> str | None:
    """Return which UTF-16 has so many zeros at every other byte, as ASCII gives it."""
    for name, zeros in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if zeros.count(0) > len(zeros) / 4 and _try(content, name) is not None:
            return name
    return None


def _reads_western(text: str) -> bool:
    unlikely = MISPLACED_CAPITAL.search(text) or SHORT_WORD.search(text)
    return not unlikely and WESTERN.sub("", text).isascii()

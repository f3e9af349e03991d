"""Tables in other encodings than UTF-8: read as what they certainly are, or refused."""

import codecs

import pytest

from medtl.data.encodings import LOST_LETTERS, NOT_UTF8, EncodingError, decode, known_encoding

# Words whose letters all of Windows' Latin code pages have at the same byte.
WESTERN = {
    "German": "Lungenentzündung unauffällig vergrößert Fußödem Übersicht GRÖSSE männlich Größe Schädel Süßöl",
    "French": "épanchement créée modéré",
    "Spanish": "pulmón lesión fémur",
    "Swedish": "vänster höger hjärta",
    "Hungarian": "egészség tüdö köhögés",
    "Finnish": "keuhkokuume löydös tyhjää näkyvä",
}
# Class names of other languages, in the encodings that their tables may have.
OTHERS = {
    "Chinese": (("gbk", "gb18030"), "正常 肺炎 阳性 阴性 有 无 男 女 肺癌 良性 恶性 左 右"),
    "Chinese, traditional": (
        ("big5", "gbk"),
        "正常 肺炎 陽性 陰性 有 無 男 女 癌 良性 惡性 腫瘤 結節 點",
    ),
    "Japanese": (("shift_jis", "euc_jp", "cp932"), "正常 肺炎 陽性 陰性 あり なし 男 女 腫瘍 ノーマル 異常"),
    "Korean": (("euc_kr", "cp949"), "정상 폐렴 양성 음성 남 여 결절"),
    "Russian": (("cp1251", "koi8_r", "iso8859_5", "mac_cyrillic", "cp866"), "норма рак да нет м ж пневмония"),
    "Greek": (("cp1253", "iso8859_7"), "φυσιολογικό πνευμονία καρκίνος όχι ναι"),
    "Hebrew": (("cp1255",), "תקין דלקת סרטן כן לא"),
    "Arabic": (("cp1256",), "طبيعي سرطان نعم لا"),
    "Thai": (("cp874",), "ปกติ มะเร็ง"),
    "Polish": (("cp1250", "iso8859_2", "cp852"), "ćwiczenie"),
    "Czech": (("cp1250", "iso8859_2", "cp852"), "zánět plic v pořádku zvětšené střevo čočka žena"),
    "Croatian": (("cp1250",), "plućna očne"),
    "Hungarian": (("cp1250",), "tüdőgyulladás egészséges nő szűkület"),
    "Slovene": (("cp1250",), "pljučne začne ledvične"),
    "Slovak": (("cp1250",), "kĺb hĺbka"),
    "Danish": (("cp1252",), "lungebetændelse hjerteforstørrelse blød"),
    "Portuguese": (("cp1252",), "infecção pulmão lesões"),
    "Romanian": (("cp1250",), "normală plămân inimă sănătos fără leziuni"),
    "Turkish": (("cp1254", "iso8859_9"), "sağlıklı kırık kadın göğüs akciğer şüpheli değil"),
    "Lithuanian": (("cp1257",), "sveikas plaučiai vėžys moteris krūtinė lūžis"),
    "Latvian": (("cp1257",), "kāja"),
    "German": (("mac_roman", "cp850"), "Lungenentzündung unauffällig vergrößert"),
    "French": (("mac_roman", "cp850"), "épanchement lésion fièvre contrôle"),
    "Spanish": (("mac_roman", "cp850"), "neumonía niño pulmón músculo único"),
}


def table(words: str) -> str:
    return "path,label\n" + "".join(f"{number}.png,{word}\n" for number, word in enumerate(words.split()))


@pytest.mark.parametrize("words", WESTERN.values(), ids=WESTERN)
def test_western_european_words_are_read_as_windows_1252(words: str) -> None:
    assert decode(table(words).encode("cp1252")) == (table(words), (NOT_UTF8,))


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        pytest.param(encoding, words, id=f"{language} in {encoding}")
        for language, (encodings, words) in OTHERS.items()
        for encoding in encodings
    ],
)
def test_other_words_are_refused_until_the_encoding_is_named(encoding: str, words: str) -> None:
    content = table(words).encode(encoding)
    with pytest.raises(EncodingError) as caught:
        decode(content)
    assert "task.encoding" in caught.value.args[1]
    assert decode(content, encoding) == (table(words), ())


# Two classes suffice for certainty, in every language whose letters are far from Western ones.
@pytest.mark.parametrize("words", ["正常 肺炎", "阳性 阴性", "有 无", "良性 恶性", "男 女"])
def test_two_chinese_words_suffice(words: str) -> None:
    with pytest.raises(EncodingError):
        decode(table(words).encode("gbk"))


@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("named", [None, "gbk", "utf-8"])
def test_a_byte_order_mark_says_more_than_the_recipe(name: str, named: str | None) -> None:
    words = table("正常 肺炎")
    assert decode(words.encode(name), named) == (words, ())


def test_big_endian_with_a_mark_is_read() -> None:
    words = table("正常 肺炎")
    assert decode(codecs.BOM_UTF16_BE + words.encode("utf-16-be")) == (words, ())


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(name: str) -> None:
    words = table("normal lésion")
    with pytest.raises(EncodingError) as caught:
        decode(words.encode(name))
    assert caught.value.args[1].endswith(f"task.encoding={name}")
    assert decode(words.encode(name), name) == (words, ())


def test_ascii_needs_no_encoding() -> None:
    assert decode(table("normal lesion").encode(), "gbk") == (table("normal lesion"), ())


@pytest.mark.parametrize("named", ["utf-8", "shift_jis", "ascii", "utf-16"])
def test_a_wrong_name_is_refused(named: str) -> None:
    with pytest.raises(EncodingError, match=f"not text in {named}"):
        decode(table("норма рак опухоль").encode("cp1251") + b"\xff", named)


@pytest.mark.parametrize("named", ["cp1251", "gbk", "latin-1"])
def test_utf_8_under_another_name_is_refused(named: str) -> None:
    with pytest.raises(EncodingError) as caught:
        decode(table("lésion").encode(), named)
    assert "byte order mark" in caught.value.args[1]


@pytest.mark.parametrize(("given", "name"), [("GBK", "gbk"), ("UTF8", "utf-8"), ("windows-1251", "cp1251")])
def test_encodings_have_the_names_that_python_knows(given: str, name: str) -> None:
    assert known_encoding(given) == name


@pytest.mark.parametrize("given", ["gkb", "cp9999", "base64", "rot13", "unicode_escape", "idna", "", "a\0b"])
def test_what_is_no_encoding_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="no encoding"):
        known_encoding(given)


def test_letters_that_were_lost_before_are_noted() -> None:
    assert decode(table("normal l\ufffdsion").encode()) == (table("normal l\ufffdsion"), (LOST_LETTERS,))


def test_an_unknown_encoding_is_refused_where_no_recipe_has_checked_it() -> None:
    with pytest.raises(EncodingError, match="did you mean gbk"):
        decode(b"path,label\n", "gkb")


@pytest.mark.parametrize("content", [codecs.BOM_UTF8 + b"\xff", codecs.BOM_UTF16_LE + b"a"])
def test_a_mark_that_the_text_contradicts_is_refused(content: bytes) -> None:
    with pytest.raises(EncodingError, match=r"not text in utf-(8|16)"):
        decode(content)


@pytest.mark.parametrize(("given", "near"), [("shift-jsi", "shift_jis"), ("gkb", "gbk")])
def test_the_nearest_encoding_is_named(given: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        known_encoding(given)

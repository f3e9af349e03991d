"""Transfer syntaxes that are not decoded: named, with a fix."""

import pytest
from pydicom import uid
from pydicom.uid import UID, AllTransferSyntaxes

from medtl.imaging.dicom.syntaxes import DECODERS, NATIVE, OTHERWISE, VIDEO, fix_of, name_of

NAMED = {
    "1.2.840.10008.1.2.4.110": ("JPEG XL Lossless", "dcm2dcm"),
    "1.2.840.10008.1.2.4.111": ("JPEG XL JPEG Recompression", "dcm2dcm"),
    "1.2.840.10008.1.2.4.112": ("JPEG XL", "dcm2dcm"),
    "1.2.840.10008.1.2.4.100": ("MPEG2 Main Profile / Main Level", VIDEO),
    "1.2.840.10008.1.2.4.102": ("MPEG-4 AVC/H.264 High Profile / Level 4.1", VIDEO),
    "1.2.840.10008.1.2.4.107": ("HEVC/H.265 Main Profile / Level 5.1", VIDEO),
    "1.2.840.10008.1.2.7.1": ("SMPTE ST 2110-20 Uncompressed Progressive Active Video", VIDEO),
    "1.2.840.10008.1.2.4.94": ("JPIP Referenced", "on a server"),
    "1.2.840.10008.1.2.4.205": ("JPIP HTJ2K Referenced Deflate", "on a server"),
    "1.2.840.10008.1.2.4.53": ("JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)", "dcmdjpeg"),
    "1.2.840.10008.1.2.4.55": ("JPEG Full Progression, Non-Hierarchical (Process 10 and 12)", "dcmdjpeg"),
    "1.2.3.4": ("an unknown transfer syntax", OTHERWISE),
}


@pytest.mark.parametrize(("syntax", "name", "fix"), [(key, *value) for key, value in NAMED.items()])
def test_a_syntax_that_is_not_decoded_has_a_name_and_a_fix(syntax: str, name: str, fix: str) -> None:
    assert name_of(UID(syntax)) == name and fix in fix_of(UID(syntax))


def test_no_fix_names_a_tool_that_cannot_read_the_syntax() -> None:
    others = {one for one in AllTransferSyntaxes if one not in DECODERS and one not in NATIVE}
    assert others - {uid.DeflatedExplicitVRLittleEndian}
    assert all("gdcmconv" not in fix_of(one) for one in others)

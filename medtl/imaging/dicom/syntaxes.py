"""TRANSFER SYNTAXES: how each one is decoded, and what to do about the others."""

from pydicom import uid

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
OTHER_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
# The plugin of pydicom and the distribution that decode a transfer syntax. One each: decoders of lossy ones
# differ by one to three grey levels.
DECODERS: dict[uid.UID, tuple[str, str]] = {
    uid.RLELossless: ("pylibjpeg", "pylibjpeg-rle"),
    uid.JPEGBaseline8Bit: ("pillow", "pillow"),
    **dict.fromkeys(OTHER_JPEG, ("gdcm", "python-gdcm")),
    **dict.fromkeys(JPEG_LS, ("pyjpegls", "pyjpegls")),
    **dict.fromkeys(JPEG_2000, ("pylibjpeg", "pylibjpeg-openjpeg")),
}

# Names that pydicom does not have.
NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
# What to do about kinds that are not decoded, by what their keyword or their name begins with.
VIDEO = "export the frame that is meant as an image (it is a video)"
FIXES = {
    "MPEG": VIDEO,
    "HEVC": VIDEO,
    "SMPTE": VIDEO,
    "JPIP": "fetch it again with its pixel data, which are on a server",
    "JPEG XL": "convert it with dcm2dcm of dcm4che (5.34.1 or later), or fetch it uncompressed",
    "JPEGSpectralSelection": "rewrite it uncompressed with dcmdjpeg of DCMTK",
    "JPEGFullProgression": "rewrite it uncompressed with dcmdjpeg of DCMTK",
    "JPEGExtended": "rewrite it uncompressed with dcmdjpeg of DCMTK",
}
OTHERWISE = "fetch it again uncompressed (Explicit VR Little Endian)"


def name_of(syntax: uid.UID) -> str:
    """Return what people call a transfer syntax."""
    return NAMES.get(str(syntax)) or (syntax.name if syntax.keyword else "an unknown transfer syntax")


def fix_of(syntax: uid.UID) -> str:
    """Return what to do about a transfer syntax that is not decoded."""
    name = NAMES.get(str(syntax)) or syntax.keyword
    return next((fix for start, fix in FIXES.items() if name.startswith(start)), OTHERWISE)

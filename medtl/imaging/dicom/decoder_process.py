"""A process that decodes compressed frames, one at a time, until its standard input ends.

Request and reply are a line of JSON followed by bytes: {"size": n, ...} and the frame, then {"shape",
"dtype"} and the values, or {"error": name of the exception}. A line "ready" precedes all replies. What
decoders print is discarded.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit, JPEGLosslessSV1

TIFF = "libtiff"

# What a decoder may take beyond what the process holds once its libraries are loaded.
MEMORY_BYTES = 2**30


def serve(requests: BinaryIO, replies: BinaryIO, answer: Callable[..., NDArray]) -> None:
    """Answer requests until there are no more; answer(content, **request) gives the values of a reply."""
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request.pop("size"))
        reply: dict[str, Any]
        try:
            values = answer(frame, **request)
            reply, content = {"shape": values.shape, "dtype": values.dtype.str}, values.tobytes()
        except BaseException as error:  # a decoder written in Rust panics past Exception
            reply, content = {"error": type(error).__name__}, b""
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.write(content)
        replies.flush()


def decode_frame(frame: bytes, transfer_syntax: str, plugin: str, **options: Any) -> NDArray:
    """Decode one frame, without its encapsulation, to (H, W) or (H, W, 3); YBR becomes RGB.

    A frame for the plugin TIFF is a file, of which `options` names the mode that pillow converts it to.
    """
    if plugin == TIFF:
        return _decode_tiff(frame, **options)
    if transfer_syntax == JPEGExtended12Bit and options["bits_stored"] > 8:
        # gdcm goes by the frame itself, but pydicom refuses to pass it 12 bits under their own name.
        transfer_syntax = JPEGLosslessSV1
    described = {**options, "number_of_frames": 1, "pixel_keyword": "PixelData"}
    values, _ = get_decoder(UID(transfer_syntax)).as_array(
        encapsulate([frame]), decoding_plugin=plugin, **described
    )
    return np.ascontiguousarray(values)


def _decode_tiff(data: bytes, mode: str) -> NDArray:
    from PIL import Image

    picture = Image.open(io.BytesIO(data), formats=("TIFF",))
    picture.load()
    return np.ascontiguousarray(picture.convert(mode) if mode not in ("", picture.mode) else picture)


def _limit_memory() -> None:
    """Let a frame that asks for too much memory end this process; Windows and macOS have no such limit."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):
        return
    most = process.memory_info().vms + MEMORY_BYTES
    process.rlimit(psutil.RLIMIT_AS, (most, most))
    process.rlimit(psutil.RLIMIT_CORE, (0, 0))


def run(answer: Callable[..., NDArray], libraries: Sequence[str]) -> None:
    """Serve on standard input and output; decoders write to neither."""
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for name in libraries:  # before memory is limited
        with suppress(ImportError):  # then pydicom says which one a frame needs
            __import__(name)
    _limit_memory()
    replies.write(b"ready\n")
    replies.flush()
    serve(sys.stdin.buffer, replies, answer)


if __name__ == "__main__":
    run(decode_frame, ("gdcm", "openjpeg", "rle", "jpeg_ls", "PIL.Image"))

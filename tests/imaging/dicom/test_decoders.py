"""Decoder children: what aborts, hangs or grows costs one frame, and the next one is decoded."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import get_frame
from pydicom.pixels import get_encoder
from pydicom.uid import JPEG2000Lossless, RLELossless

from medtl.imaging.dicom import decoders as decoding
from medtl.imaging.dicom.decoders import DecoderLostError, DecoderPool, FrameRefusedError
from tests.imaging.conftest import pattern, refusal

PIXELS = pattern(70, 64, top=4095)
REQUEST = {
    "transfer_syntax": JPEG2000Lossless,
    "plugin": "pylibjpeg",
    "rows": 70,
    "columns": 64,
    "samples_per_pixel": 1,
    "photometric_interpretation": "MONOCHROME2",
    "bits_allocated": 16,
    "bits_stored": 12,
    "pixel_representation": 0,
    "planar_configuration": 0,
}


@pytest.fixture
def frame(make_radiograph: Callable) -> bytes:
    path = make_radiograph(PIXELS, syntax=JPEG2000Lossless)
    return get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2, decoding.CHILD)
    yield pool
    pool.close()


def test_a_child_is_kept_and_decodes_exactly(pool: DecoderPool, frame: bytes) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(pool.decode(frame, REQUEST, 5), PIXELS)
    assert len(pool.idle) == 1


@pytest.mark.parametrize("bits", range(8, 17))
def test_the_threaded_decoder_of_jpeg_2000_keeps_every_value(bits: int, pool: DecoderPool) -> None:
    pixels = pattern(37, 53, dtype="uint8" if bits == 8 else "uint16", top=2**bits - 1)
    described = {**REQUEST, "rows": 37, "columns": 53, "bits_stored": bits}
    described["bits_allocated"] = pixels.dtype.itemsize * 8
    options = {key: described[key] for key in described if key not in ("transfer_syntax", "plugin")}
    frame = get_encoder(JPEG2000Lossless).encode(pixels, number_of_frames=1, **options)
    for plugin in ("pillow", "pylibjpeg"):
        values = pool.decode(frame, {**described, "plugin": plugin}, 5)
        np.testing.assert_array_equal(values, pixels)


def test_a_frame_is_decoded_with_threads_but_not_where_processes_read_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def threads() -> str:
        return decoding._child_environment()["OPJ_NUM_THREADS"]

    monkeypatch.setattr(decoding, "usable_processors", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads() == "4"
    for stated, allowed in {"1": "1", "2,1": "2", "many": "4", "": "4", "0": "4", "-1": "4"}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert threads() == allowed
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(decoding, "parent_process", lambda: object())
    assert threads() == "1"


def test_a_refused_frame_leaves_the_child_at_work(pool: DecoderPool, frame: bytes) -> None:
    pool.decode(frame, REQUEST, 5)
    child = pool.idle[0]
    with pytest.raises(FrameRefusedError):
        pool.decode(frame[:60], REQUEST, 5)
    np.testing.assert_array_equal(pool.decode(frame, REQUEST, 5), PIXELS)
    assert pool.idle == [child]


def test_a_killed_child_is_replaced(pool: DecoderPool, frame: bytes) -> None:
    pool.decode(frame, REQUEST, 5)
    os.kill(pool.idle[0].process.pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (pool.idle[0].process.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(DecoderLostError, match="ended its process"):
        pool.decode(frame, REQUEST, 5)
    np.testing.assert_array_equal(pool.decode(frame, REQUEST, 5), PIXELS)


def test_a_child_that_hangs_is_killed_in_time(pool: DecoderPool, frame: bytes) -> None:
    pool.decode(frame, REQUEST, 5)
    child = pool.idle[0]
    os.kill(child.process.pid, signal.SIGSTOP)
    with pytest.raises(DecoderLostError, match="took more than"):
        pool.decode(frame, REQUEST, 0.3)
    assert child.process.poll() is not None and not pool.idle


def test_a_frame_that_needs_too_much_memory_is_refused(pool: DecoderPool) -> None:
    request = {**REQUEST, "transfer_syntax": RLELossless, "rows": 40_000, "columns": 40_000}
    frame = b"\2\0\0\0\x40\0\0\0\x44\0\0\0" + b"\0" * 56
    with pytest.raises((FrameRefusedError, DecoderLostError)):
        pool.decode(frame, request, 20)


def test_threads_do_not_mix_their_frames_up(
    frame: bytes, make_radiograph: Callable, pool: DecoderPool
) -> None:
    other = make_radiograph(PIXELS[::-1].copy(), "other.dcm", syntax=JPEG2000Lossless)
    frames = [frame, get_frame(pydicom.dcmread(other).PixelData, 0, number_of_frames=1)]
    expected = [PIXELS, PIXELS[::-1]]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda k: pool.decode(frames[k % 2], REQUEST, 20), range(40)))
    assert all(np.array_equal(result, expected[k % 2]) for k, result in enumerate(results))
    assert len(pool.idle) <= 2


def test_a_decoder_that_aborts_costs_its_file(
    make_radiograph: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_radiograph(PIXELS, syntax=JPEG2000Lossless)
    monkeypatch.setattr(
        decoding,
        "CHILD",
        (sys.executable, "-c", "import os, sys; print(flush=True); sys.stdin.buffer.readline(); os.abort()"),
    )
    error = refusal(path)
    assert error.code == "dicom-decoder" and error.where == str(path)

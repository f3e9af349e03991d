"""Stores on disk: whole or absent, held while they are read, evicted by budget, continued when killed."""

import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from medtl.errors import OutputError
from medtl.training.feature_cache import store as feature_store
from medtl.training.feature_cache.store import (
    FeatureStore,
    StoreSpec,
    StoreWriter,
    begin,
    make_room,
    open_store,
    publish,
    staging_folder,
)

KB = 1000


def spec(name, rows=25, batch_size=10):
    """Return a store of 10 floats a row: 1 kB in three batches, by default."""
    return StoreSpec(name, (rows, 10), batch_size)


def numbers(of):
    return torch.arange(of.shape[0] * 10, dtype=torch.float32).reshape(of.shape) + len(of.name)


def write(root, of, batches, rank=0):
    staging = StoreWriter(root, of, rank)
    for batch in batches:
        staging.write(batch, numbers(of)[of.rows(batch)])
    staging.close()


def build(root, of, budget=1e9):
    """Compute a whole store and return it open."""
    lock = claimed(root, of)
    make_room(root, [of], budget)
    begin(root, of)
    write(root, of, range(of.batches))
    publish(root, of)
    store = open_store(root, of, check=False)
    lock.release()
    return store


def claimed(root, of):
    return staging_folder(root, of).claim()


def names(root):
    return {path.name for path in root.iterdir() if path.is_dir()}


def age(root, name, seconds):
    for path in (root / name).iterdir():
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def test_what_was_written_in_any_order_is_read_by_view_and_sample(tmp_path):
    first, second = build(tmp_path, spec("a")), build(tmp_path, spec("bb"))
    store = FeatureStore((first, second))
    assert torch.equal(store.read([24, 0, 7], 0), numbers(spec("a"))[[24, 0, 7]])
    assert torch.equal(store.read(np.array([3]), 1), numbers(spec("bb"))[[3]])
    assert torch.equal(store.read([3], 3), store.read([3], 1)), "views rotate"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "activations.f32",
        "features.json",
        "in-use-0.lock",
    ]


@pytest.mark.parametrize("damage", ["bit", "cut", "grown", "gone", "json", "header", "shape"])
def test_a_store_that_is_not_whole_is_none_and_is_made_again(tmp_path, damage):
    build(tmp_path, spec("a"))
    path, header = tmp_path / "a" / "activations.f32", tmp_path / "a" / "features.json"
    content = path.read_bytes()
    if damage == "bit":
        path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage in ("cut", "grown"):
        path.write_bytes(content[:-4] if damage == "cut" else content + bytes(4))
    elif damage == "gone":
        path.unlink()
    else:
        header.write_text({"json": "{", "header": "{}", "shape": '{"shape": [25, 11], "crc32": []}'}[damage])
    assert open_store(tmp_path, spec("a")) is None
    assert build(tmp_path, spec("a")) is not None
    assert path.read_bytes() == content


def test_the_stores_used_the_longest_ago_make_room(tmp_path):
    for number, name in enumerate("abcd"):
        build(tmp_path, spec(name))
        age(tmp_path, name, 100 - number)
    open_store(tmp_path, spec("a"))  # used just now
    build(tmp_path, spec("e"), budget=3 * KB)
    assert names(tmp_path) == {"d", "a", "e"}


def test_a_store_that_is_held_is_not_evicted(tmp_path):
    held = build(tmp_path, spec("held"))
    age(tmp_path, "held", 1000)
    build(tmp_path, spec("free"))
    build(tmp_path, spec("new"), budget=2 * KB)
    assert names(tmp_path) == {"held", "new"}
    del held
    build(tmp_path, spec("newer"), budget=2 * KB)
    assert names(tmp_path) == {"new", "newer"}


def test_where_room_cannot_be_made_nothing_is_evicted(tmp_path):
    held, _ = build(tmp_path, spec("held")), build(tmp_path, spec("free"))
    lock = claimed(tmp_path, spec("new"))
    with pytest.raises(OutputError, match="has no room for 0 MB") as caught:
        make_room(tmp_path, [spec("new")], 1.5 * KB)
    assert caught.value.code == "cache-full"
    assert names(tmp_path) == {"held", "free", ".preparing-new"}
    assert held.activations.shape == (25, 10)
    lock.release()


def test_a_full_disk_evicts_and_then_is_told_of(tmp_path, monkeypatch):
    build(tmp_path, spec("old"))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda _: usage(feature_store.RESERVED_BYTES + 100)
    )
    build(tmp_path, spec("new"))
    assert names(tmp_path) == {"new"}
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda _: usage(0))
    lock = claimed(tmp_path, spec("newer"))
    with pytest.raises(OutputError, match="the disk has no room"):
        make_room(tmp_path, [spec("newer")], 1e9)
    lock.release()


def test_what_killed_passes_left_goes_first_unless_it_is_held(tmp_path):
    for name in ("left", "busy"):
        lock = claimed(tmp_path, spec(name))
        make_room(tmp_path, [spec(name)], 1e9)
        if name == "left":
            lock.release()
    build(tmp_path, spec("store"))
    age(tmp_path, "store", 1000)
    build(tmp_path, spec("new"), budget=3 * KB)
    assert names(tmp_path) == {"store", ".preparing-busy", "new"}
    lock.release()


def test_a_pass_goes_on_with_the_batches_that_hold(tmp_path):
    lock = claimed(tmp_path, spec("a"))
    make_room(tmp_path, [spec("a")], 1e9)
    begin(tmp_path, spec("a"))
    write(tmp_path, spec("a"), [0], rank=0)
    write(tmp_path, spec("a"), [2], rank=1)
    lock.release()
    folder = staging_folder(tmp_path, spec("a")).path
    with (folder / "journal-1.jsonl").open("a") as journal:
        journal.write("[1, 12345]\n[7, 1]\nnonsense\n[1, 99")  # never written; torn
    lock = claimed(tmp_path, spec("a"))
    make_room(tmp_path, [spec("a")], 1e9)
    begin(tmp_path, spec("a"))
    assert StoreWriter(tmp_path, spec("a"), 0).done == {0, 2}
    with pytest.raises(OutputError, match="could not write its part"):
        publish(tmp_path, spec("a"))
    write(tmp_path, spec("a"), [1])
    publish(tmp_path, spec("a"))
    store = open_store(tmp_path, spec("a"))
    assert np.array_equal(store.activations, numbers(spec("a")).numpy())
    lock.release()


def test_a_batch_whose_numbers_were_lost_with_the_power_is_not_believed(tmp_path):
    lock = claimed(tmp_path, spec("a"))
    make_room(tmp_path, [spec("a")], 1e9)
    begin(tmp_path, spec("a"))
    write(tmp_path, spec("a"), [0, 1, 2])
    with (staging_folder(tmp_path, spec("a")).path / "activations.f32").open("r+b") as file:
        file.seek(400)
        file.write(bytes(400))
    begin(tmp_path, spec("a"))
    assert StoreWriter(tmp_path, spec("a"), 0).done == {0, 2}
    lock.release()


def test_files_of_a_pass_have_their_whole_size_from_the_start(tmp_path):
    lock = claimed(tmp_path, spec("a"))
    make_room(tmp_path, [spec("a")], 1e9)
    status = (staging_folder(tmp_path, spec("a")).path / "activations.f32").stat()
    assert status.st_size == KB and status.st_blocks > 0, "allocated, not sparse"
    lock.release()

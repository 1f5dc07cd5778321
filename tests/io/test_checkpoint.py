"""Checkpoints: every array comes back bit for bit, and no damage goes unseen."""

import errno
import io
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lnz._core import files
from lnz._core.checkpoint import CheckpointError, load_arrays, load_tree, save_tree
from lnz.io import WriteError

TREE = {
    "weights": jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4),
    "step": jnp.asarray(7, jnp.int32),
    "key": jax.random.key(3),
    "parts": (jnp.asarray([True, False]), None, "a word", jnp.zeros((0, 2))),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def saved(path):
    save_tree(path, TREE, {"step": 7, "value": 1 / 3})
    return path


class TestRoundTrip:
    def test_a_tree(self, saved):
        tree, about = load_tree(saved, TREE, with_metadata=True)
        assert jax.tree.structure(tree) == jax.tree.structure(TREE)
        assert about == {"step": 7, "value": 1 / 3}
        save_tree(saved.with_name("again"), tree, about)
        assert saved.with_name("again").read_bytes() == saved.read_bytes()
        assert (jax.random.key_data(tree["key"]) == jax.random.key_data(TREE["key"])).all()
        assert jax.random.key_impl(tree["key"]) == jax.random.key_impl(TREE["key"])
        assert tree["parts"][2] == "a word"
        for name in ("weights", "step"):
            assert tree[name].dtype == TREE[name].dtype
            assert tree[name].shape == TREE[name].shape
            assert (tree[name] == TREE[name]).all()

    @pytest.mark.parametrize(
        "dtype",
        ["float16", "bfloat16", "float32", "float64", "complex64", "int8", "uint8", "int32", "int64", "uint32", "bool"],
    )
    @pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 1, 3)])
    def test_every_dtype_and_shape(self, path, dtype, shape):
        array = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
        save_tree(path, array)
        back = load_tree(path, array)
        assert back.dtype == array.dtype
        assert back.shape == shape
        assert np.asarray(back).tobytes() == np.asarray(array).tobytes()

    def test_numbers_that_are_easily_lost(self, path):
        odd = np.asarray([0.0, -0.0, np.inf, -np.inf, 5e-324, np.finfo(float).max, 1 + np.finfo(float).eps])
        save_tree(path, odd, {"values": odd[4:].tolist()})
        back, about = load_tree(path, odd, with_metadata=True)
        assert back.tobytes() == odd.tobytes()
        assert np.asarray(about["values"]).tobytes() == odd[4:].tobytes()

    def test_arrays_of_any_memory_order(self, path):
        array = np.arange(12.0).reshape(3, 4).T[::2]
        save_tree(path, array)
        assert (load_tree(path, array) == array).all()

    def test_other_leaves_are_kept_from_the_example(self, path):
        save_tree(path, {"a": jnp.ones(2), "f": jnp.tanh, "n": 3})
        tree = load_tree(path, {"a": jnp.zeros(2), "f": jnp.sin, "n": 4})
        assert tree["f"] is jnp.sin
        assert tree["n"] == 4
        assert (tree["a"] == 1).all()

    def test_raw_key_data_and_keys_of_other_kinds(self, path):
        tree = (jax.random.PRNGKey(3), jax.random.key(3, impl="rbg"), jax.random.split(jax.random.key(1), 3))
        save_tree(path, tree)
        back = load_tree(path, tree)
        assert (back[0] == tree[0]).all()
        for one, two in zip(back[1:], tree[1:], strict=True):
            assert one.dtype == two.dtype
            assert (jax.random.key_data(one) == jax.random.key_data(two)).all()


class TestWriting:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
    def test_nan_is_refused_and_what_was_there_stays(self, saved, dtype):
        before = saved.read_bytes()
        with pytest.raises(ValueError, match=r"must not contain NaN, but \['a'\] does"):
            save_tree(saved, {"a": jnp.asarray([1, np.nan]).astype(dtype)})
        assert saved.read_bytes() == before

    def test_a_failed_write_leaves_what_was_there(self, saved, monkeypatch):
        class Full(io.BufferedRandom):
            def write(self, content):
                super().write(content[:100])
                raise OSError(errno.ENOSPC, "No space left on device")

        before = saved.read_bytes()
        monkeypatch.setattr(files, "_create", lambda p: Full(io.FileIO(p, "x+")))
        with pytest.raises(WriteError, match="the disk is full") as caught:
            save_tree(saved, {"a": jnp.ones(3)})
        assert str(saved) in str(caught.value)
        assert saved.read_bytes() == before
        assert os.listdir(saved.parent) == ["run"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(WriteError, match="folder does not exist"):
            save_tree(tmp_path / "no" / "run", TREE)


class TestDamage:
    def test_cut_short_anywhere(self, saved):
        whole = saved.read_bytes()
        for length in range(len(whole)):
            saved.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                load_tree(saved, TREE)

    def test_longer_than_it_should_be(self, saved):
        saved.write_bytes(saved.read_bytes() + b"\0")
        with pytest.raises(CheckpointError):
            load_tree(saved, TREE)

    def test_any_bit_flipped(self, saved):
        """Every byte with one bit wrong: seen. (A bit may turn one JSON spelling into another of the same content.)"""
        whole, rng = saved.read_bytes(), random.Random(0)
        tree, about = load_arrays(saved)
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            saved.write_bytes(damaged)
            try:
                found, about_found = load_arrays(saved)
            except CheckpointError:
                continue
            assert about_found == about, position
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in tree.items()
            }

    def test_a_digit_of_the_metadata_changed(self, saved):
        whole = saved.read_bytes()
        assert b'step\\": 7' in whole
        saved.write_bytes(whole.replace(b'step\\": 7', b'step\\": 8'))
        with pytest.raises(CheckpointError, match="damaged: its contents do not match their digest"):
            load_tree(saved, TREE)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\0" * 64, b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + b"\0" * 60, b"\x89PNG\r\n\x1a\n" + b"\0" * 60, b"{" * 40],
        ids=["empty", "zeros", "text", "npy", "zip", "png", "braces"],
    )  # fmt: skip
    def test_other_files(self, path, content):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"cut short or not a checkpoint .* Resume from another one"
        ) as caught:
            load_tree(path, TREE)
        assert "\n" not in str(caught.value)

    def test_a_safetensors_file_of_someone_else(self, path):
        from safetensors.numpy import save_file

        for metadata in (None, {"format": "pt"}, {"lnz": "2 abc {}"}):
            save_file({"w": np.ones(3)}, path, metadata=metadata)
            with pytest.raises(CheckpointError, match="not a checkpoint of this version of lnz"):
                load_tree(path, TREE)
        save_file({"w": np.ones(3)}, path, metadata={"lnz": "1 abc {}"})
        with pytest.raises(CheckpointError, match="damaged"):
            load_tree(path, TREE)

    def test_no_file(self, path):
        for wrong in (path, path.parent):
            with pytest.raises(CheckpointError, match="there is no checkpoint at"):
                load_tree(wrong, TREE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"weights": jnp.zeros((4, 3), jnp.float32)},
            r"\['weights'\] is float32\[3, 4\], but this run has float32\[4, 3\]",
        ),
        ({"weights": jnp.zeros((3, 4))}, r"\['weights'\] is float32\[3, 4\], but this run has float64\[3, 4\]"),
        ({"step": jnp.zeros((1,), jnp.int32)}, r"\['step'\] is int32\[\], but this run has int32\[1\]"),
        ({"more": jnp.zeros(2)}, r"it lacks \['more'\]"),
        ({"step": None}, r"it holds \['step'\], which this run does not have"),
        ({"key": jax.random.key(0, impl="rbg")}, r"\['key'\] is uint32\[2\], but this run has uint32\[4\]"),
    ],
)
def test_another_tree(saved, change, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tree(saved, TREE | change)
    assert "Use the settings it was made with." in str(caught.value)

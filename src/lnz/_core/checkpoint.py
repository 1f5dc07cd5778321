"""Checkpoints: the arrays of any pytree in one safetensors file, written whole or not at all, and read only into the same shape."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.files import write_atomic

_ENTRY, _VERSION = "lnz", "1"  # the one entry of the file's own metadata: "version digest metadata", the last as JSON


class CheckpointError(ValueError):
    """A checkpoint that is cut short, damaged, or of another model."""


def save_tree(path: str | Path, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write the arrays of a pytree to a file, atomically. Random keys are written as their data; other leaves are left out.

    Args:
        path: the file; replaced if it exists.
        tree: any pytree.
        metadata: any value that JSON can represent; finite floats come back bit for bit.

    Raises:
        WriteError: where the file cannot be written (a full disk, no permission).
        ValueError: if an array contains NaN, since no run could resume from it.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(_plain(leaf), order="C") for name, leaf in _named_arrays(tree)}
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and np.isnan(array).any():
            raise ValueError(f"a checkpoint must not contain NaN, but {name} does. Go back to values without NaN.")
    text = json.dumps(metadata or {})
    about = {_ENTRY: f"{_VERSION} {_digest(arrays, text)} {text}"}
    write_atomic(path, lambda file: file.write(save(arrays, metadata=about)))


def load_tree(path: str | Path, like: Any, *, with_metadata: bool = False) -> Any:
    """Read a file written by `save_tree` into a pytree of the same structure, shapes and dtypes.

    Args:
        path: the file.
        like: a pytree of the expected structure; its leaves other than arrays are kept.
        with_metadata: whether to return (tree, metadata) rather than the tree.

    Raises:
        CheckpointError: if the file is missing, cut short, damaged, or holds another model.
    """
    arrays, metadata = load_arrays(path)
    named = _named_arrays(like)
    missing = [name for name, _ in named if name not in arrays]
    extra = sorted(set(arrays) - {name for name, _ in named})
    if missing or extra:
        detail = f"it lacks {missing[0]}" if missing else f"it holds {extra[0]}, which this run does not have"
        raise CheckpointError(
            f"{path} is a checkpoint of another model or of other settings: {detail}. Use the settings it was made with."
        )
    for name, leaf in named:
        expected, array = _plain(leaf), arrays[name]
        if expected.shape != array.shape or expected.dtype != array.dtype:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: {name} is {array.dtype}{list(array.shape)}, "
                f"but this run has {expected.dtype}{list(expected.shape)}. Use the settings it was made with."
            )
    leaves = [_restored(arrays[name], leaf) if _is_array(leaf) else leaf for name, leaf in _named_leaves(like)]
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return (tree, metadata) if with_metadata else tree


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and its metadata. Raises CheckpointError like `load_tree`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}. Check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            version, _, rest = (file.metadata() or {}).get(_ENTRY, "").partition(" ")
            if version != _VERSION:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not a checkpoint of this version of lnz. Choose another file."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} is cut short or not a checkpoint ({cause}). Resume from another one, or start a new run."
        ) from None
    digest, _, text = rest.partition(" ")
    if digest != _digest(arrays, text):
        raise CheckpointError(
            f"{path} is damaged: its contents do not match their digest. Resume from another one, or start a new run."
        )
    return arrays, json.loads(text)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path) or "value", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _named_arrays(tree: Any) -> list[tuple[str, Any]]:
    return [(name, leaf) for name, leaf in _named_leaves(tree) if _is_array(leaf)]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _restored(array: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array) if isinstance(like, jax.Array) else array


def _digest(arrays: dict[str, np.ndarray], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"|{name}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

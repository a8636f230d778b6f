"""Weight files: the only module that reads or writes them.

Weights are safetensors. A file holds a parameter tree flattened to names joined by "/", such as
`encoder/conv_in/kernel`. Reading is strict: every tensor of the file is used once and every
parameter of the model is filled, with the shape and the type the model declares. Pickled files
(.bin, .ckpt, .pt, .pth) run code when they are opened and are never read.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sisma_jax.errors import InputError
from sisma_jax.files import write_atomically

PICKLED = (".bin", ".ckpt", ".pth", ".pt")
LISTED = 8
"""Names written out in one message."""


def check_weight_file(path: Path) -> None:
    """Refuse what cannot be a weight file before anything is opened.

    Raises:
      InputError: if `path` is missing, pickled, or not named .safetensors.
    """
    if path.suffix in PICKLED:
        raise InputError(
            f"{path} is a pickled file, which this package does not read because opening one runs "
            "code: convert it to safetensors first"
        )
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no weight file: give one whose name ends in .safetensors")
    if not path.is_file():
        raise InputError(f"there is no weight file {path}: check the path")


def save_tree(path: str | os.PathLike, tree: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write a tree of arrays to one safetensors file, all of it or nothing.

    Args:
      path: the file, ending in .safetensors; replaced if it exists.
      tree: nested mappings of arrays.
      metadata: what a reader of the file should know, kept in its header.
    """
    path = Path(path)
    tensors = {
        name: np.ascontiguousarray(array) for name, array in flatten_dict(tree, sep="/").items()
    }
    write_atomically(path, save(tensors, metadata))


def load_tree(path: str | os.PathLike, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read a tree of arrays that has exactly the names, shapes and types of `like`.

    Args:
      path: a file written by `save_tree`.
      like: nested mappings of anything with `shape` and `dtype`, such as the result of
        `jax.eval_shape`.

    Returns:
      Nested dicts of arrays on the default device.

    Raises:
      InputError: if the file is missing, pickled, cut short or malformed; or if it lacks a
        parameter, holds a tensor too many, or one of another shape or type. One message lists
        all of them.
    """
    path = Path(path)
    check_weight_file(path)
    wanted = flatten_dict(like, sep="/")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is cut short or of another "
            "format, so copy or export it again"
        ) from error
    differences = _differences(wanted, tensors)
    if differences:
        raise InputError(
            f"the weights in {path} do not fit the model: {'; '.join(differences)}; give the "
            "configuration these weights were trained with"
        )
    return unflatten_dict({name: jnp.asarray(array) for name, array in tensors.items()}, sep="/")


def _differences(wanted: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> list[str]:
    """Say how the tensors found differ from those wanted, one phrase per kind."""
    shared = wanted.keys() & found.keys()
    kinds = {
        "missing": wanted.keys() - found.keys(),
        "left over": found.keys() - wanted.keys(),
        "of another shape": (
            f"{name} {found[name].shape} instead of {tuple(wanted[name].shape)}"
            for name in shared
            if found[name].shape != tuple(wanted[name].shape)
        ),
        "of another type": (
            f"{name} {found[name].dtype} instead of {jnp.dtype(wanted[name].dtype)}"
            for name in shared
            if found[name].dtype != wanted[name].dtype
        ),
    }
    phrases = ((kind, _listed(names)) for kind, names in kinds.items())
    return [f"{kind}: {names}" for kind, names in phrases if names]


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

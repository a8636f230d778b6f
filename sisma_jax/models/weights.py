"""Reading and writing of weight files; no other module does either.

Weights are stored as safetensors. This package's own files hold a parameter tree flattened to names
joined by "/", such as `encoder/conv_in/kernel`. Reading is strict: tensors and parameters must
match one to one, in shape and dtype. Pickled files (.bin, .ckpt, .pt, .pth) can run code when
opened and are never read; `RECIPE` converts them. Config files beside weights are read here, too.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sisma_jax.common.config import TRAINED_BY, trained_by
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import local_path, refuse_lfs_pointer, write_atomically

PICKLED = (".bin", ".ckpt", ".pth", ".pt")
RECIPE = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "d = torch.load('OLD', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, 'NEW')\""
)
"""Converts pickled weights of any model (also in docs/autoencoder.md); torch is no dependency."""
LISTED = 8
"""The most names listed in one message."""


def check_weight_file(path: Path) -> None:
    """Check, without opening it, that `path` can be a weight file.

    Raises:
      InputError: if `path` is missing, pickled, a git-lfs pointer, or not named .safetensors.
    """
    if not path.is_file():
        raise InputError(f"there is no weight file {path}: check the path")
    refuse_lfs_pointer(path)
    if path.suffix in PICKLED:
        recipe = RECIPE.replace("OLD", str(path)).replace(
            "NEW", str(path.with_suffix(".safetensors"))
        )
        raise InputError(
            f"{path} is a pickled file, which this package does not read because opening it can "
            f"run code: convert it once, where torch is installed, with {recipe}"
        )
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a weight file: give one whose name ends in .safetensors")


def read_config_file(path: Path, network: str, remedy: str) -> Any:
    """Read the JSON file that describes the weights of a network beside it.

    Args:
      path: the file.
      network: "autoencoder" or "parser", the section of a config by which it is trained.
      remedy: end of the message if the file is not JSON.

    Raises:
      InputError: if it is a git-lfs pointer or not JSON, or the config of a run, which has no
        weights beside it.
    """
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        refuse_lfs_pointer(path)
        raise InputError(f"{path} is not JSON ({error}): {remedy}") from error
    if isinstance(fields, dict) and (command := trained_by(fields)):
        if command == TRAINED_BY[network]:
            raise InputError(
                f"{path.parent} is a run of {command} that is not finished and so has no "
                f"{network}/ yet: finish it with the same command, or give another run"
            )
        raise InputError(
            f"{path.parent} is a run of {command} without {network}/ in it: give the folder of a "
            f"run of {TRAINED_BY[network]}"
        )
    return fields


def check_entries(path: Path, fields: Mapping[str, Any], known: Iterable[str], remedy: str) -> None:
    """Raise InputError unless the config file at `path` has exactly the known entries."""
    if differing := sorted({*known} ^ fields.keys()):
        raise InputError(
            f"{path} has missing or unknown entries {', '.join(differing)}: {remedy} with this "
            "version"
        )


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: dict[str, str]
) -> None:
    """Write named arrays to one safetensors file, atomically.

    Args:
      path: the file, ending in .safetensors; replaced if it exists.
      tensors: arrays by name.
      metadata: strings to store in the file's header.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_atomically(Path(path), save(contiguous, metadata))


def save_tree(path: str | os.PathLike, tree: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write a tree of arrays (nested mappings), as `save_tensors` does."""
    save_tensors(path, flatten_dict(tree, sep="/"), metadata)


def read_tensors(
    path: str | os.PathLike, choose: Callable[[list[str]], Iterable[str]] = list
) -> dict[str, np.ndarray]:
    """Read the tensors of a file, in the dtypes of the file.

    Args:
      path: the file.
      choose: selects the names to read from those in the file; all by default.

    Raises:
      InputError: if the file is missing, pickled, truncated or malformed, or holds numbers that are
        not finite.
    """
    path = local_path(path)
    check_weight_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in choose(list(file.keys()))}
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # unknown dtypes too
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is cut short or has another "
            "format, so copy or export it again"
        ) from error
    check_finite(path, tensors)
    return tensors


def check_finite(source: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise InputError if tensors of `source`, a file or a description, are not finite."""
    broken = listed(
        name
        for name, tensor in tensors.items()
        if jnp.issubdtype(tensor.dtype, jnp.floating) and not np.isfinite(tensor).all()
    )
    if broken:
        raise InputError(f"{source} holds numbers that are not finite in {broken}: copy it again")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Read the metadata that `save_tensors` stored in the header of an intact file."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def load_tree(path: str | os.PathLike, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read a tree of arrays with exactly the names, shapes and dtypes of `like`.

    Args:
      path: a file written by `save_tree`.
      like: nested mappings of objects with `shape` and `dtype`, such as the result of
        `jax.eval_shape`.

    Returns:
      Nested dicts of arrays on the default device.

    Raises:
      InputError: if the file cannot be read, or does not match (`check_tensors`).
    """
    tensors = read_tensors(path)
    check_tensors(path, flatten_dict(like, sep="/"), tensors)
    return unflatten_dict({name: jnp.asarray(array) for name, array in tensors.items()}, sep="/")


def check_tensors(
    path: str | os.PathLike, wanted: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Compare the tensors of a file with those that a model needs, by name.

    Args:
      path: path of the file, for the message.
      wanted: objects with `shape` and `dtype`.
      tensors: the tensors of the file.

    Raises:
      InputError: if a tensor is missing, unexpected, or of another shape or dtype. One message
        lists all differences.
    """
    shared = wanted.keys() & tensors.keys()
    kinds = {
        "missing": wanted.keys() - tensors.keys(),
        "left over": tensors.keys() - wanted.keys(),
        "of another shape": (
            f"{name} {tensors[name].shape} instead of {tuple(wanted[name].shape)}"
            for name in shared
            if tensors[name].shape != tuple(wanted[name].shape)
        ),
        "of another type": (
            f"{name} {tensors[name].dtype} instead of {jnp.dtype(wanted[name].dtype)}"
            for name in shared
            if tensors[name].dtype != wanted[name].dtype
        ),
    }
    phrases = ((kind, listed(names)) for kind, names in kinds.items())
    differences = [f"{kind}: {names}" for kind, names in phrases if names]
    if differences:
        raise InputError(
            f"the weights in {path} do not fit the model: {'; '.join(differences)}; give the "
            "configuration these weights were trained with"
        )


def check_published_style(source: str | os.PathLike, grouping: str, colours: bool) -> None:
    """Raise InputError unless a style encoder is the one that published weights are for.

    Args:
      source: their file.
      grouping: how it groups its channels; the tensors have the same shapes for every grouping.
      colours: whether it reads mean colours, which is unpublished.
    """
    if colours:
        raise InputError(
            f"{source} holds published weights, which have none for the mean colours of "
            "model.style_colours: set it to False"
        )
    if grouping != "published":
        raise InputError(
            f"{source} holds published weights, whose style encoder mixes classes, but "
            f"model.style_grouping is {grouping!r}: set it to 'published'"
        )


def tree_checksum(tree: Mapping[str, Any]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(tree, sep="/").items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def listed(names: Iterable[str]) -> str:
    """The names, sorted and joined; only the first LISTED of a long list."""
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

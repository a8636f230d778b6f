"""Parameters from PyTorch state dicts, for models whose layers have tensors of other names.

A table maps each layer of a model, by its path in the parameter tree such as "decoder/conv_in", to
the name of the layer in the state dict, which has tensors `weight` and perhaps `bias`. The layouts:

    layer                          here                      PyTorch
    linear map                     (in, out)                 (out, in)
    convolution                    (h, w, in, out)           (out, in, h, w)
    linear map of each class       (k, in, out)              (k out, in, 1), or k of (out, in)
    convolution of each class      (k, h, w, in, out)        (k out, in, h, w)
    bias or norm of each class     (k, n)                    (k n,), or k of (n,)
    other bias or norm             (n,)                      (n,)

k classes are k groups of a convolution, or k layers, for which the table has k names.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sisma_jax.common.errors import InputError
from sisma_jax.models.weights import check_finite, check_tensors, listed

Layers = dict[str, str | tuple[str, ...]]
"""PyTorch's names of layers by ours; a tuple has one name per class."""


def arrays(
    source: str | os.PathLike, tensors: Any, choose: Callable[[list[str]], Iterable[str]] = list
) -> dict[str, np.ndarray]:
    """Return a state dict as arrays.

    Args:
      source: the file, or what else holds the tensors, for messages.
      tensors: arrays, lists or PyTorch's tensors on the CPU by name.
      choose: selects the names to return; all by default.

    Raises:
      InputError: if it is no mapping, or a chosen tensor holds numbers that are no floats or not
        finite.
    """
    if not isinstance(tensors, Mapping):
        raise InputError(
            f"{source} is of type {type(tensors).__name__}: give a dict of arrays by their names, "
            "or read a file by load_published"
        )
    found = {name: np.asarray(tensors[name]) for name in choose([*tensors])}
    others = [name for name, x in found.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
    if others:
        raise InputError(f"{source} has no floats in {listed(others)}: give the trained weights")
    check_finite(source, found)
    return found


def from_state_dict(
    source: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    layers: Layers,
) -> dict[str, Any]:
    """Return the parameters that a state dict holds.

    They are float32, or float64 if all tensors are and JAX's 64-bit types are enabled.

    Args:
      source: the file, or what else holds the tensors, for messages.
      tensors: the state dict.
      shapes: tree of the parameters' shapes.
      layers: the name of every layer; see the module docstring.

    Raises:
      InputError: if a tensor is missing, left over or of another shape.
    """
    exact = jax.config.jax_enable_x64 and all(x.dtype == np.float64 for x in tensors.values())
    kind = np.dtype(np.float64 if exact else np.float32)
    places = {}
    wanted = {}
    for (*modules, leaf), like in flatten_dict(shapes).items():
        names = layers["/".join(modules)]
        separate = isinstance(names, tuple)
        suffix = "bias" if leaf == "bias" else "weight"
        shape = _their_shape(leaf, like.shape, separate=separate)
        own = [f"{name}.{suffix}" for name in (names if separate else (names,))]
        places[*modules, leaf] = own, like.shape
        wanted |= dict.fromkeys(own, jax.ShapeDtypeStruct(shape, kind))
    check_tensors(source, wanted, {name: x.astype(kind, copy=False) for name, x in tensors.items()})
    return unflatten_dict(
        {
            path: jnp.asarray(_ours(path[-1], shape, [tensors[name] for name in own]), kind)
            for path, (own, shape) in places.items()
        }
    )


def _their_shape(leaf: str, shape: tuple[int, ...], *, separate: bool) -> tuple[int, ...]:
    """Shape of the tensor, or of each class's, for our parameter of this name and shape."""
    classes, rest = (shape[:1], shape[1:]) if _has_classes(leaf, shape) else ((), shape)
    if leaf == "kernel":
        *window, inputs, outputs = rest
        rest = (outputs, inputs, *window)
        if classes and not window and not separate:
            rest = (*rest, 1)
    if classes and not separate:
        return (classes[0] * rest[0], *rest[1:])
    return rest


def _ours(leaf: str, shape: tuple[int, ...], tensors: list[np.ndarray]) -> np.ndarray:
    """Our parameter of this name and shape from its tensors."""
    tensor = np.stack(tensors) if len(tensors) > 1 else tensors[0]
    if leaf != "kernel":
        return tensor.reshape(shape)
    classes = shape[:1] if _has_classes(leaf, shape) else ()
    first = len(classes)
    *window, inputs, outputs = shape[first:]
    tensor = tensor.reshape(*classes, outputs, inputs, *window)
    return tensor.transpose(*range(first), *range(first + 2, tensor.ndim), first + 1, first)


def to_pytorch_layout(array: Any) -> Any:
    """Return a parameter without an axis of classes, or its shape's array, in PyTorch's layout."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Return a tensor of PyTorch in our layout; the inverse of `to_pytorch_layout`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _has_classes(leaf: str, shape: tuple[int, ...]) -> bool:
    """Whether the first axis of our parameter is that of the classes."""
    return len(shape) % 2 == 1 if leaf == "kernel" else len(shape) == 2


def style_encoder_layers(ours: str, theirs: str, levels: int) -> Layers:
    """The layers of `StyleEncoder`, which SCA-DM and CA2-SIS name alike."""
    layers = {"Encoder.first_layer.0": "conv_in", "Encoder.first_layer.1": "norm_in"}
    for i in range(levels + 1):
        layers[f"Encoder.enc_layer_{i}.0"] = f"down_{i + 1}_conv"
        layers[f"Encoder.enc_layer_{i}.1"] = f"down_{i + 1}_norm"
    for i in range(levels):
        layers[f"Decoder.dec_layer_{i}.1"] = f"up_{levels - i}_conv"
        layers[f"Decoder.dec_layer_{i}.2"] = f"up_{levels - i}_norm"
        layers[f"out.out_{i}.0"] = f"out_{levels - i}"
    return _prefixed(ours, theirs, layers)


def transformer_layers(ours: str, theirs: str) -> Layers:
    """The layers of `SpatialTransformer` in latent diffusion's naming."""
    layers = {"norm": "norm", "proj_in": "in", "proj_out": "out"}
    inner = "transformer_blocks.0"
    layers |= {f"{inner}.norm{i}": f"norm{i}" for i in (1, 2, 3)}
    layers |= {f"{inner}.ff.net.0.proj": "feed_in", f"{inner}.ff.net.2": "feed_out"}
    for number, name in enumerate(("self_attention", "cross_attention"), start=1):
        for part, layer in dict(to_q="query", to_k="key", to_v="value").items():
            layers[f"{inner}.attn{number}.{part}"] = f"{name}/{layer}"
        layers[f"{inner}.attn{number}.to_out.0"] = f"{name}/out"
    return _prefixed(ours, theirs, layers)


def residual_layers(ours: str, theirs: str) -> Layers:
    """The layers of `ResBlock` without a map in guided diffusion's naming."""
    layers = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "skip",
    }
    return _prefixed(ours, theirs, layers)


def spade_residual_layers(ours: str, theirs: str) -> Layers:
    """The layers of `ResBlock` with a map in SCA-DM's naming."""
    layers = {
        "in_layers.1": "conv1",
        "emb_layers.1": "time",
        "out_layers.2": "conv2",
        "skip_connection": "skip",
    }
    for norm, name in {"in_norm": "norm1", "out_norm": "norm2"}.items():
        for part, layer in {"shared.0": "shared", "gamma": "gamma", "beta": "beta"}.items():
            layers[f"{norm}.mlp_{part}"] = f"{name}/{layer}"
    return _prefixed(ours, theirs, layers)


def _prefixed(ours: str, theirs: str, layers: dict[str, str]) -> Layers:
    return {f"{ours}/{mine}": f"{theirs}.{name}" for name, mine in layers.items()}

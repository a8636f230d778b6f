"""Loading and saving of autoencoders: own folders, diffusers' folders, single files, the hub."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sisma_jax.common import hub
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    is_new_or_empty,
    local_path,
    whole_folder,
    write_json,
)
from sisma_jax.models.autoencoder import published
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.model import Autoencoder, AutoencoderKL, parameter_shapes
from sisma_jax.models.weights import (
    check_entries,
    check_weight_file,
    load_tree,
    read_config_file,
    read_tensors,
    save_tensors,
    save_tree,
)

CONFIG_FILE = "config.json"
WEIGHT_FILE = "weights.safetensors"
DIFFUSERS_WEIGHT_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSERS_WEIGHT_FILES = (DIFFUSERS_WEIGHT_FILE, "diffusion_pytorch_model.fp16.safetensors")
HUB_WEIGHT_FILES = (DIFFUSERS_WEIGHT_FILE, WEIGHT_FILE)
SUBFOLDERS = ("autoencoder", "vae")
"""Subfolders of the autoencoder in a run folder and in a diffusers pipeline."""


def save_autoencoder(
    path: str | os.PathLike, config: AutoencoderConfig, params: Mapping[str, Any]
) -> None:
    """Write `config.json` and `weights.safetensors` to the folder `path`, both or neither.

    Raises:
      InputError: if `path` exists and is anything other than an autoencoder's folder.
    """
    with _folder(local_path(path)) as folder:
        fields = {"model": AutoencoderKL.__name__} | dataclasses.asdict(config)
        write_json(folder / CONFIG_FILE, fields)
        save_tree(folder / WEIGHT_FILE, params, {"model": AutoencoderKL.__name__})


def save_diffusers(
    path: str | os.PathLike, config: AutoencoderConfig, params: Mapping[str, Any]
) -> None:
    """Write the folder `path` in diffusers' format: an AutoencoderKL, or a VQModel with a codebook.

    Raises:
      InputError: if diffusers cannot represent this architecture, or as `save_autoencoder` does.
    """
    fields, tensors = published.to_pytorch(config, params)
    with _folder(local_path(path)) as folder:
        write_json(folder / CONFIG_FILE, fields)
        save_tensors(folder / DIFFUSERS_WEIGHT_FILE, tensors, {"format": "pt"})


def _folder(path: Path) -> Any:
    """A context that writes a new folder at `path`, replacing an autoencoder but nothing else."""
    if not is_new_or_empty(path, besides=(CONFIG_FILE, WEIGHT_FILE, DIFFUSERS_WEIGHT_FILE)):
        raise InputError(
            f"{path} exists and holds something other than an autoencoder: give a new folder"
        )
    return whole_folder(path)


def load_autoencoder(
    path: str | os.PathLike, *, scaling_factor: float | None = None, dtype: str | None = "auto"
) -> Autoencoder:
    """Read an autoencoder.

    Args:
      path: one of
        - a run folder of `train_autoencoder` or `train`, or its export;
        - a diffusers folder, or that of a pipeline with a `vae/` folder;
        - a .safetensors file in diffusers' or CompVis' naming, alone (the sizes are inferred from
          the tensors) or beside its `config.json`;
        - `hf://owner/name` or `hf://owner/name/folder`, optionally with `@revision`: a folder on
          Hugging Face's hub, kept in its cache (`sisma_jax.common.hub`).
      scaling_factor: overrides that of the weights.
      dtype: compute type, "float32", "bfloat16" or "auto", which is bfloat16 in programs for a GPU
        or TPU and float32 on a CPU; None for the one that the weights were saved with. Parameters
        are float32 either way.

    Raises:
      InputError: if there is no autoencoder, it is pickled, damaged or of another architecture, or
        sizes and weights do not match. A single file without a scaling factor loads, but
        `Autoencoder.scaling_factor` raises.
    """
    autoencoder = _load(hub.local_path(path, CONFIG_FILE, HUB_WEIGHT_FILES), scaling_factor)
    changes = {"scaling_factor": scaling_factor, "dtype": dtype}
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(autoencoder, config=dataclasses.replace(autoencoder.config, **given))


def _load(path: Path, scaling_factor: float | None) -> Autoencoder:
    if not path.is_dir() and (path.suffix or path.is_file()):
        check_weight_file(path)
        beside = path.parent / CONFIG_FILE
        if not beside.is_file():
            return _lone_file(path, scaling_factor)
        return _with_config(beside, path, scaling_factor)
    for name in SUBFOLDERS:
        if (path / name / CONFIG_FILE).is_file():
            path = path / name
            break
    config = path / CONFIG_FILE
    if not config.is_file():
        raise InputError(
            f"there is no autoencoder at {path}: give a folder that holds {CONFIG_FILE} and "
            f"{WEIGHT_FILE} or {DIFFUSERS_WEIGHT_FILE}, a run folder with autoencoder/ in it, a "
            ".safetensors file, or hf://owner/name"
        )
    return _with_config(config, None, scaling_factor)


def _with_config(path: Path, file: Path | None, scaling_factor: float | None) -> Autoencoder:
    """Read the weights that the config at `path` describes: `file`, or a known name beside it."""
    fields = _read_fields(path)
    if "_class_name" in fields:
        config = published.config_of(path, fields, scaling_factor)
        file = file or _published_file(path.parent)
        tensors, _ = _published_tensors(file)
        return Autoencoder(config, published.from_pytorch(file, tensors, config))
    config = _own_config(path, fields)
    file = file or path.parent / WEIGHT_FILE
    return Autoencoder(config, load_tree(file, parameter_shapes(config)))


def _published_tensors(path: Path) -> tuple[dict[str, np.ndarray], float | None]:
    """The tensors of an autoencoder by canonical name, and the file's scaling factor or None."""
    tensors = read_tensors(path, published.of_autoencoder)
    scale = tensors.pop(published.SCALING_FACTOR, None)
    return published.canonical(tensors), None if scale is None else float(scale)


def _lone_file(path: Path, scaling_factor: float | None) -> Autoencoder:
    tensors, its_own = _published_tensors(path)
    if any("/" in name for name in tensors):
        raise InputError(
            f"{path} has this package's own format, which needs its {CONFIG_FILE} beside it: "
            "give the folder that holds both"
        )
    config = published.config_from_shapes(path, tensors, scaling_factor or its_own)
    return Autoencoder(config, published.from_pytorch(path, tensors, config))


def _published_file(folder: Path) -> Path:
    """The weight file of a diffusers folder, which may be pickled or missing."""
    names = (*DIFFUSERS_WEIGHT_FILES, "diffusion_pytorch_model.bin")
    files = [folder / name for name in names if (folder / name).is_file()]
    return (files or [folder / DIFFUSERS_WEIGHT_FILE])[0]


def _read_fields(path: Path) -> dict[str, Any]:
    fields = read_config_file(path, "autoencoder", "copy or export it again")
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds no configuration: copy or export it again")
    return fields


def _own_config(path: Path, fields: dict[str, Any]) -> AutoencoderConfig:
    """The config in this package's own `config.json`."""
    known = {field.name for field in dataclasses.fields(AutoencoderConfig)} | {"model"}
    fields = {"codebook": 0} | fields  # older folders lack this entry
    check_entries(path, fields, known, "export the autoencoder again")
    del fields["model"]
    try:
        return AutoencoderConfig.from_json(fields)
    except InputError as error:
        raise InputError(f"{path} is damaged, {error}: export the autoencoder again") from error

"""Loading and saving of face parsers: own folders, and single files of published weights.

config.json          sizes, class names, size of the images, and quality measured by training
weights.safetensors  parameters
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    is_new_or_empty,
    local_path,
    whole_folder,
    write_json,
)
from sisma_jax.models.face_parser.config import FaceParserConfig
from sisma_jax.models.face_parser.parser import FaceParser, parameter_shapes
from sisma_jax.models.face_parser.published import load_published
from sisma_jax.models.face_parser.unet import FaceParserUNet
from sisma_jax.models.weights import (
    check_entries,
    check_weight_file,
    load_tree,
    read_config_file,
    save_tree,
)

CONFIG_FILE = "config.json"
WEIGHT_FILE = "weights.safetensors"
SUBFOLDER = "parser"
"""Subfolder of the parser in a run folder."""
BESIDES = ("classes", "quality", "size")
"""Entries of `config.json` beside the model's name and sizes."""


def save_parser(
    path: str | os.PathLike,
    config: FaceParserConfig,
    params: Mapping[str, Any],
    *,
    classes: Sequence[str],
    size: int | None,
    quality: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `weights.safetensors` to the folder `path`, both or neither.

    Args:
      path: the folder; a face parser in it is replaced.
      config, params: sizes and parameters of the U-Net.
      classes, size, quality: see `FaceParser.trained`.

    Raises:
      InputError: if they do not fit the configuration, or `path` exists and is anything other than
        a face parser's folder.
    """
    path = local_path(path)
    FaceParser.trained(config, params, classes=classes, size=size, quality=quality)
    if not is_new_or_empty(path, besides=(CONFIG_FILE, WEIGHT_FILE)):
        raise InputError(
            f"{path} exists and holds something other than a face parser: give a new folder"
        )
    values = {"classes": list(classes), "quality": quality and dict(quality), "size": size}
    with whole_folder(path) as folder:
        named = {"model": FaceParserUNet.__name__} | dataclasses.asdict(config)
        write_json(folder / CONFIG_FILE, named | values)
        save_tree(folder / WEIGHT_FILE, params, {"model": FaceParserUNet.__name__})


def load_parser(path: str | os.PathLike) -> FaceParser:
    """Read a face parser.

    Args:
      path: one of
        - a folder of `save_parser`, or a run folder with such a folder `parser/`;
        - a .safetensors file of published weights, recognised by its tensors: the CelebAMask-HQ
          repository's U-Net or face-parsing.PyTorch's `79999_iter.pth`, converted by the recipe in
          docs/autoencoder.md.

    Raises:
      InputError: if there is no parser, or it is pickled, damaged or of another architecture.
    """
    path = local_path(path)
    if not path.is_dir() and (path.suffix or path.is_file()):
        check_weight_file(path)
        if (path.parent / CONFIG_FILE).is_file() and path.name == WEIGHT_FILE:
            return _load_folder(path.parent)
        return load_published(path)
    for folder in (path / SUBFOLDER, path):
        if (folder / CONFIG_FILE).is_file():
            return _load_folder(folder)
    raise InputError(
        f"there is no face parser at {path}: give a folder that holds {CONFIG_FILE} and "
        f"{WEIGHT_FILE}, a run folder with {SUBFOLDER}/ in it, or a .safetensors file of "
        "published weights"
    )


def _load_folder(folder: Path) -> FaceParser:
    path = folder / CONFIG_FILE
    fields = _read_fields(path)
    try:
        values = {name: fields.pop(name) for name in BESIDES}
        config = FaceParserConfig.from_json(fields)
        parser = FaceParser.trained(config, None, **values)
    except InputError as error:
        raise InputError(f"{path} is damaged, {error}: train or copy the parser again") from error
    params = load_tree(folder / WEIGHT_FILE, parameter_shapes(parser.module))
    return dataclasses.replace(parser, params=params)


def _read_fields(path: Path) -> dict[str, Any]:
    """The content of `save_parser`'s config.json, without the model's name."""
    fields = read_config_file(path, "parser", "copy the parser again")
    model = fields.pop("model", None) if isinstance(fields, dict) else None
    if model != FaceParserUNet.__name__:
        raise InputError(
            f"{path} does not describe a face parser: give the folder that it was saved to"
        )
    known = {field.name for field in dataclasses.fields(FaceParserConfig)} | {*BESIDES}
    check_entries(path, fields, known, "train the parser again")
    named = isinstance(fields["classes"], list) and {*map(type, fields["classes"])} <= {str}
    sized = isinstance(fields["size"], int | None)
    if not named or not sized or not isinstance(fields["quality"], dict | None):
        raise InputError(
            f"{path} is damaged: classes must be a list of names, size a whole number or null, and "
            "quality an object or null; train or copy the parser again"
        )
    return fields

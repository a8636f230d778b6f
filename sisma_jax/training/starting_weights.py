"""The check of `train.init_from` before a run starts: its weights have to fit the run's network."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sisma_jax.common.config import TRAINED_BY, section, trained_by
from sisma_jax.common.errors import InputError, naming
from sisma_jax.models import autoencoder, face_parser, generators
from sisma_jax.models.autoencoder import AutoencoderConfig
from sisma_jax.models.face_parser import FaceParserConfig, FaceParserUNet
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params

Network = generators.Config | AutoencoderConfig | FaceParserConfig
"""The configuration of a trained network."""
WITHOUT_SHAPES = ("diffusion", "dtype", "output_tanh", "remat", "scaling_factor", "scan")
"""Fields of these configurations on which the shapes of parameters do not depend."""


def check_starting_weights(config: ConfigDict) -> None:
    """Raise InputError unless a run can start from the weights of `train.init_from`.

    They have to be those of a run or an export of the same command and kind, with parameters of the
    same names and shapes, and with the same grouping of the style encoder's channels.
    """
    path = config.train.init_from
    theirs_at = RunFolder(Path(path))
    command = trained_by(config)
    with naming("train.init_from"):
        their_config = theirs_at.config(command)
    if not theirs_at.weights_file.exists() and theirs_at.newest_step() is None:
        raise InputError(
            f"train.init_from is {path}, which holds no finished checkpoint: give a run or an "
            "export that has weights"
        )
    with naming(f"train.init_from {path}"):
        theirs = _network(their_config)
    ours = _network(config)
    if type(theirs) is not type(ours):
        their_kind, our_kind = (generators.generator(x).name for x in (theirs, ours))
        raise InputError(
            f"train.init_from is {path}, a run of {their_kind}, but this one trains {our_kind}: "
            f"give a run of {our_kind}"
        )
    name = next(name for name, trainer in TRAINED_BY.items() if trainer == command)
    # The parameters have the same names and shapes for both groupings.
    grouping = getattr(theirs, "style_grouping", None)
    if grouping != getattr(ours, "style_grouping", None):
        raise InputError(
            f"train.init_from is {path}, whose {name}.style_grouping is {grouping!r}, but this "
            f"run's is {ours.style_grouping!r}: set --config.{name}.style_grouping={grouping}"
        )
    keys = [
        field.name
        for field in dataclasses.fields(ours)
        if getattr(theirs, field.name) != getattr(ours, field.name)
        and field.name not in WITHOUT_SHAPES
    ]
    if not keys or _shapes(theirs) == _shapes(ours):  # traced only if they may differ
        return
    listed = lambda network: ", ".join(f"{name}.{key} {getattr(network, key)!r}" for key in keys)
    raise InputError(
        f"train.init_from is {path}, whose weights have other shapes than this run's: it has "
        f"{listed(theirs)}, and this run {listed(ours)}; set the same values, or give another run"
    )


def _network(config: ConfigDict) -> Network:
    """The configuration of the network that a config trains."""
    command = trained_by(config)
    if command == TRAINED_BY["autoencoder"]:
        return section(AutoencoderConfig, config, "autoencoder")
    if command == TRAINED_BY["parser"]:
        return section(FaceParserConfig, config, "parser")
    return generators.model_config(config)


def _shapes(network: Network) -> Params:
    """Shapes and dtypes of the parameters."""
    if isinstance(network, AutoencoderConfig):
        return autoencoder.parameter_shapes(network)
    if isinstance(network, FaceParserConfig):
        return face_parser.parameter_shapes(FaceParserUNet(network))
    # The implementation of the scan may be one that cannot run here.
    any_scan: dict[str, Any] = {"scan": "auto"} if hasattr(network, "scan") else {}
    return generators.parameter_shapes(dataclasses.replace(network, **any_scan))

"""Write a trained model as safetensors, to keep, to publish or to move.

A run of `train` becomes a folder with averaged weights, config, classes and autoencoder, for
`sample`, `Synthesizer.load` and `train.init_from`. A run of `train_autoencoder` becomes diffusers'
AutoencoderKL or VQModel, where its architecture allows.

    python -m sisma_jax.export --weights latest_net_G.safetensors --config ca2sis --out ca2sis

writes the same folder from the published weights of CA2-SIS or SCA-DM, converted to safetensors.
Any key of the config is overridden by --config.section.key=VALUE.
"""

import argparse
from pathlib import Path

import jax
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import load_config, split_overrides, to_json, trained_by
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_folder, whole_folder
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.devices.sharding import local_mesh, replicated
from sisma_jax.models.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from sisma_jax.models.autoencoder.files import save_diffusers
from sisma_jax.models.autoencoder.published import CODEBOOK, FIRST_STAGE
from sisma_jax.models.ca2sis import published as ca2sis
from sisma_jax.models.generators import Params, generator, model_config, parameter_shapes
from sisma_jax.models.scadm import published as scadm
from sisma_jax.models.weights import read_tensors, save_tree
from sisma_jax.runs.checkpoint import abstract_like, averaged_weights
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.checks import check_autoencoder

FORMATS = ("auto", "diffusers", "own")
PUBLISHED = {"ca2sis": ca2sis.load_published, "scadm": scadm.load_published}
"""Readers of published weights, by the kind of model."""


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.export",
        __doc__,
        "python -m sisma_jax.export --workdir runs/demo --out sisma-demo",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=cli.path, help="a run folder")
    source.add_argument(
        "--weights", type=cli.path, metavar="FILE.safetensors",
        help="published weights: CA2-SIS's latest_net_G, or a checkpoint of SCA-DM",
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=cli.path, required=True, help="folder to write, new or empty")
    add(
        "--format",
        choices=FORMATS,
        default="auto",
        help="format of an autoencoder; auto: diffusers' where possible, else own (this package's)",
    )
    add(
        "--config", metavar="FILE[:VARIANT]",
        help="with --weights: the config of the model, a file or an installed one (ca2sis, scadm)",
    )  # fmt: skip
    add(
        "--classes", type=cli.path, metavar="FILE.json",
        help="with --weights: the model's classes (default: CelebAMask-HQ's)",
    )  # fmt: skip
    add(
        "--autoencoder", metavar="PATH",
        help="with SCA-DM's --weights: its first stage (default: the one in the same file, or the "
        "config's autoencoder.path)",
    )  # fmt: skip
    args, words = parser.parse_known_args()
    pairs, others = split_overrides(words)
    parser.refuse(others)
    args.overrides = [f"--config.{key}={value}" for key, value in pairs]
    _check_options(args)
    return args


def _check_options(args: argparse.Namespace) -> None:
    """Raises InputError for options of the other source."""
    given = [f"--{name}" for name in ("config", "classes", "autoencoder") if getattr(args, name)]
    given += args.overrides
    if args.workdir is not None and given:
        raise InputError(
            f"{given[0]} is for published --weights, but a run has its own: leave it out"
        )
    if args.weights is not None and not args.config:
        raise InputError(
            f"--config must be given for the published weights {args.weights}: "
            "write --config ca2sis or --config scadm"
        )


def export_sisma(run: RunFolder, out: Path) -> str:
    """Write config, classes, averaged weights and autoencoder; return what was written."""
    config = run.config()
    model = model_config(config)
    shapes = parameter_shapes(model)
    shardings = jax.tree.map(lambda _: replicated(local_mesh()), shapes)
    step, params = averaged_weights(run, abstract_like(shapes, shardings))
    first_stage = None
    if not generator(model).one_pass:
        first_stage = load_autoencoder(run.autoencoder, dtype=None)
    _write_export(out, config, run.classes(), params, first_stage, {"step": str(step)})
    return _in_words(f"{generator(model).name} at step {step}", first_stage)


def _write_export(
    out: Path,
    config: ConfigDict,
    classes: ClassSet,
    params: Params,
    first_stage: Autoencoder | None,
    about: dict[str, str],
) -> None:
    """Write an exported folder; the header of its weights also has `about`."""
    with whole_folder(out) as folder:
        written = RunFolder(folder)
        written.config_file.write_text(to_json(config), "utf-8")
        written.write_classes(classes)
        if first_stage is not None:
            save_autoencoder(written.autoencoder, first_stage.config, first_stage.params)
        name = generator(model_config(config)).name
        save_tree(written.weights_file, params, {"model": name} | about)


def _in_words(model: str, first_stage: Autoencoder | None) -> str:
    return model if first_stage is None else f"{model}, with its autoencoder"


def export_published(
    weights: Path, config: ConfigDict, classes: ClassSet, autoencoder: str | None, out: Path
) -> str:
    """Write published weights as the export of a run; return what was written.

    Args:
      weights: safetensors file by the authors' names.
      config: sizes of the model. Its style encoder becomes the published one.
      classes: the classes that the model was trained on.
      autoencoder: path of SCA-DM's first stage; None for the one that `weights` holds, or
        `config.autoencoder.path`.
      out: a new or empty folder.

    Raises:
      InputError: if they do not fit each other, or the model has no published weights.
    """
    kind = config.get("model", {}).get("kind", "sisma")
    if kind not in PUBLISHED:
        raise InputError(
            f"the config is one of {kind}, of which no weights were published: give --config "
            f"{' or '.join(PUBLISHED)}"
        )
    config.model.style_grouping = "published"
    model = model_config(config)
    if len(classes) != model.num_classes:
        raise InputError(
            f"the model has {model.num_classes} classes, but there are {len(classes)} in --classes "
            "(default: CelebAMask-HQ's 19): give its classes, or the right model.num_classes"
        )
    one_pass = generator(model).one_pass
    if one_pass and autoencoder is not None:
        raise InputError(f"{generator(model).name} has no first stage: leave --autoencoder out")
    first_stage = None
    if not one_pass:
        found = weights if _holds_first_stage(weights) else config.autoencoder.path
        first_stage = load_autoencoder(
            autoencoder or found, scaling_factor=config.autoencoder.scaling_factor or None
        )
        check_autoencoder(model, first_stage)
    params = PUBLISHED[kind](weights, model)
    _write_export(out, config, classes, params, first_stage, {"source": weights.name})
    return _in_words(f"{generator(model).name} of {weights.name}", first_stage)


def _holds_first_stage(weights: Path) -> bool:
    """Whether a checkpoint of SCA-DM has its first stage in the same file."""
    codebook = f"{FIRST_STAGE}{CODEBOOK}"
    return bool(read_tensors(weights, lambda names: [name for name in names if name == codebook]))


def export_autoencoder(run: RunFolder, out: Path, format: str) -> str:
    """Write a first stage; return what was written."""
    if not run.autoencoder.exists():
        raise InputError(
            f"{run.path} holds no finished autoencoder: finish its training (a smaller train.steps "
            "ends it sooner)"
        )
    autoencoder = load_autoencoder(run.autoencoder)
    if format != "own":
        try:
            save_diffusers(out, autoencoder.config, autoencoder.params)
            return "autoencoder in diffusers' format"
        except InputError as error:
            if format == "diffusers":
                raise
            print(f"note: {error}")
    save_autoencoder(out, autoencoder.config, autoencoder.params)
    return "autoencoder in this package's own format"


def main() -> None:
    args = parse_arguments()
    command = "sisma_jax.train"
    if args.workdir is not None:
        run = RunFolder(args.workdir)
        command = trained_by(run.config(command, "sisma_jax.train_autoencoder"))
    if command == "sisma_jax.train" and args.format != "auto":
        raise InputError(
            f"--format {args.format} is for autoencoders, but {args.workdir or args.weights} is "
            "none: leave it out"
        )
    check_output_folder("--out", args.out)
    if args.weights is not None:
        config = load_config(args.config, args.overrides, command=command)
        classes = CELEBAMASK if args.classes is None else ClassSet.read(args.classes)
        what = export_published(args.weights, config, classes, args.autoencoder, args.out)
    elif command == "sisma_jax.train":
        what = export_sisma(run, args.out)
    else:
        what = export_autoencoder(run, args.out, args.format)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {what}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)

"""Write a trained model as safetensors, to keep, to publish or to move.

A run of `train` becomes a folder with averaged weights, config, classes and autoencoder, for
`sample`, `Synthesizer.load` and `train.init_from`. A run of `train_autoencoder` becomes diffusers'
AutoencoderKL or VQModel, where its architecture allows.
"""

import argparse
import shutil
from pathlib import Path

import jax

from sisma_jax.common import cli
from sisma_jax.common.config import to_json, trained_by
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_new_or_empty, whole_folder, why_unwritable
from sisma_jax.devices.sharding import local_mesh, replicated
from sisma_jax.models.autoencoder import load_autoencoder, save_autoencoder
from sisma_jax.models.autoencoder.files import save_diffusers
from sisma_jax.models.generators import generator, model_config, parameter_shapes
from sisma_jax.models.weights import save_tree
from sisma_jax.runs.checkpoint import abstract_like, averaged_weights
from sisma_jax.runs.folder import RunFolder

FORMATS = ("auto", "diffusers", "own")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        "sisma_jax.export",
        __doc__,
        "python -m sisma_jax.export --workdir runs/demo --out sisma-demo",
    )
    add = parser.add_argument
    add("--workdir", type=cli.path, required=True, help="a run folder")
    add("--out", type=cli.path, required=True, help="folder to write, new or empty")
    add(
        "--format",
        choices=FORMATS,
        default="auto",
        help="format of an autoencoder; auto: diffusers' where possible, else own (this package's)",
    )
    return parser.parse_args()


def export_sisma(run: RunFolder, out: Path) -> str:
    """Write config, classes, averaged weights and autoencoder; return what was written."""
    config = run.config()
    model = model_config(config)
    name, shapes = generator(model).name, parameter_shapes(model)
    shardings = jax.tree.map(lambda _: replicated(local_mesh()), shapes)
    step, params = averaged_weights(run, abstract_like(shapes, shardings))
    has_autoencoder = not generator(model).one_pass
    if has_autoencoder:
        load_autoencoder(run.autoencoder)  # raises before anything is written
    with whole_folder(out) as folder:
        written = RunFolder(folder)
        written.config_file.write_text(to_json(config), "utf-8")
        written.write_classes(run.classes())
        if has_autoencoder:
            shutil.copytree(run.autoencoder, written.autoencoder)
        save_tree(written.weights_file, params, {"model": name, "step": str(step)})
    return f"{name} at step {step}" + (", with its autoencoder" if has_autoencoder else "")


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
    run = RunFolder(args.workdir)
    command = trained_by(run.config("sisma_jax.train", "sisma_jax.train_autoencoder"))
    is_sisma = command == "sisma_jax.train"
    if is_sisma and args.format != "auto":
        raise InputError(
            f"--format {args.format} is for autoencoders, but {run.path} is none: leave it out"
        )
    if not is_new_or_empty(args.out):
        raise InputError(f"{args.out} is not empty: give --out a new or empty folder")
    if (reason := why_unwritable(args.out)) is not None:
        raise InputError(f"--out {args.out} cannot be written ({reason}): name another folder")
    if is_sisma:
        what = export_sisma(run, args.out)
    else:
        what = export_autoencoder(run, args.out, args.format)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {what}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)

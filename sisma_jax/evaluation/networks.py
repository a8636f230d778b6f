"""Networks for scores: their weight files, and which of them are available."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from sisma_jax.common.errors import InputError
from sisma_jax.models.face_parser import FaceParser, load_parser
from sisma_jax.models.judges.backbones import ALEXNET, VGG16
from sisma_jax.models.judges.inception import PUBLISHED_FILE, InceptionV3, load_inception
from sisma_jax.models.judges.lpips import Lpips, load_lpips


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A published weight file in this package's format."""

    file: str
    """Name in the weight folder."""
    source: str
    """Its origin, a pickled file that the recipe in docs/autoencoder.md converts."""


def _converted(file: str) -> str:
    return Path(file).with_suffix(".safetensors").name


INCEPTION = WeightFile(
    _converted(PUBLISHED_FILE), f"{PUBLISHED_FILE} of pytorch-fid's release fid_weights"
)
KINDS = {"alex": ALEXNET, "vgg": VGG16}
"""LPIPS' backbones by the name of their linear weights."""
BACKBONES = {
    name: WeightFile(_converted(kind.file), f"torchvision's {kind.file}")
    for name, kind in KINDS.items()
}
LINEAR = {
    name: WeightFile(f"lpips-v0.1-{name}.safetensors", f"{kind.linear_file} of the package lpips")
    for name, kind in KINDS.items()
}
DEFAULT_PARSER = Path("runs/parser")
DEFAULT_WEIGHTS = Path("weights")
OF_PARSER = frozenset({"fd_parser", "miou", "accuracy"})
"""Names in `scoring.SCORES` of scores that need a parser."""
TRAIN_PARSER = "python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Required networks that are available, and a sentence for each that is not."""

    parser: FaceParser | None
    inception: InceptionV3 | None
    lpips: Lpips | None
    missing: Mapping[str, str]
    """Sentences by name in `scoring.SCORES` of a score that cannot be computed; "miou" stands for
    all of OF_PARSER."""
    parser_is_default: bool = False
    """Whether it is DEFAULT_PARSER, not one named by the user."""

    def check_asked(self, asked: frozenset[str]) -> None:
        """Raises InputError if the network of a score that was requested by name is missing."""
        for score in sorted(asked):
            sentence = self.missing.get("miou" if score in OF_PARSER else score)
            if sentence is not None:
                raise InputError(
                    f"--metrics asks for what cannot be measured. {sentence}; or leave it out of "
                    "--metrics"
                )

    def fitting(self, classes: Sequence[str], size: int | None) -> "Networks":
        """These networks for label maps of `classes` and pictures of `size` pixels.

        Raises:
          InputError: if a parser named by the user has other classes; the default one is left out.
        """
        if self.parser is None:
            return self
        try:
            check_parser(self.parser, classes, size, named=not self.parser_is_default)
        except InputError as error:
            if not self.parser_is_default:
                raise
            return dataclasses.replace(self, parser=None, missing=self.missing | _no_parser(error))
        return self


def check_parser(
    parser: FaceParser, classes: Sequence[str], size: int | None, *, named: bool
) -> None:
    """Raises InputError if a parser does not fit label maps of `classes`, or, unless `named` by the
    user, was trained on another size than `size` pixels."""
    parser.check(classes)
    if not named and size is not None and parser.size != size:
        raise InputError(
            f"it was trained on {parser.size} pixels where the pictures have {size}: "
            "name it with --parser to use it anyway"
        )


def check_weight_folder(weights: Path | None) -> None:
    """Raises InputError if `weights` is given but is not a folder."""
    if weights is not None and not weights.is_dir():
        raise InputError(f"--weights {weights} is not a folder: give one of published weights")


def load_networks(
    metrics: frozenset[str], weights: Path | None, parser: Path | None, lpips_network: str
) -> Networks:
    """Load the networks that metrics need.

    Args:
      metrics: names of `scoring.SCORES`.
      weights: folder of published weights.
      parser: a path that `load_parser` reads.
      lpips_network: "alex" or "vgg".

    For `weights` and `parser` None is the default, which need not exist.

    Raises:
      InputError: if a folder that is named does not exist, or a file cannot be used.
    """
    check_weight_folder(weights)
    weights = weights or DEFAULT_WEIGHTS
    missing: dict[str, str] = {}
    loaded_parser = inception = lpips = None
    if metrics & OF_PARSER:
        try:
            loaded_parser = load_parser(parser or DEFAULT_PARSER)
        except InputError as error:
            if parser is not None:
                raise
            missing |= _no_parser(error)
    if "fid" in metrics:
        if (weights / INCEPTION.file).exists():
            inception = load_inception(weights / INCEPTION.file)
        else:
            missing["fid"] = "FID: " + _absent(weights, [INCEPTION])
    if "lpips_diversity" in metrics:
        files = [BACKBONES[lpips_network], LINEAR[lpips_network]]
        absent = [file for file in files if not (weights / file.file).exists()]
        if absent:
            missing["lpips_diversity"] = "LPIPS diversity: " + _absent(weights, absent)
        else:
            lpips = load_lpips(*(weights / file.file for file in files))
    return Networks(
        parser=loaded_parser,
        inception=inception,
        lpips=lpips,
        missing=missing,
        parser_is_default=parser is None,
    )


def _no_parser(reason: InputError) -> dict[str, str]:
    sentence = (
        f"mIoU, accuracy and FD-parser: {DEFAULT_PARSER} cannot be used ({reason}); train a parser "
        f"({TRAIN_PARSER}), or give --parser the published weights of CelebAMask-HQ's U-Net or of "
        "face-parsing.PyTorch's BiSeNet (79999_iter.pth) as safetensors"
    )
    return {"miou": sentence}


def _absent(folder: Path, files: list[WeightFile]) -> str:
    named = " and ".join(f"{folder / file.file} ({file.source})" for file in files)
    return f"missing {named}; convert to safetensors as docs/autoencoder.md says"

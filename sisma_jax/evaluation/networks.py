"""The networks that scores are made with: which files they are, and which are at hand."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sisma_jax.errors import InputError
from sisma_jax.models.face_parser import FaceParser, load_parser
from sisma_jax.models.inception import InceptionV3, load_inception
from sisma_jax.models.lpips import Lpips, load_lpips


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A published weight file, as this package wants it."""

    file: str
    """Its name in the weight folder."""
    source: str
    """Where it comes from, as a pickled file that the README's recipe converts."""


INCEPTION = WeightFile(
    "pt_inception-2015-12-05-6726825d.safetensors",
    "pt_inception-2015-12-05-6726825d.pth of pytorch-fid's release fid_weights",
)
BACKBONES = {
    "alex": WeightFile(
        "alexnet-owt-7be5be79.safetensors", "torchvision's alexnet-owt-7be5be79.pth"
    ),
    "vgg": WeightFile("vgg16-397923af.safetensors", "torchvision's vgg16-397923af.pth"),
}
LINEAR = {
    "alex": WeightFile("lpips-v0.1-alex.safetensors", "weights/v0.1/alex.pth of the package lpips"),
    "vgg": WeightFile("lpips-v0.1-vgg.safetensors", "weights/v0.1/vgg.pth of the package lpips"),
}
DEFAULT_PARSER = Path("runs/parser")
DEFAULT_WEIGHTS = Path("weights")
TRAIN_PARSER = "python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Those that were wanted and are at hand, and a sentence on each that is not."""

    parser: FaceParser | None
    inception: InceptionV3 | None
    lpips: Lpips | None
    missing: tuple[str, ...]
    parser_is_default: bool = False
    """It was found where nobody named it."""

    def for_classes(self, classes: Sequence[str]) -> "Networks":
        """These networks where label maps have the classes `classes`.

        Raises:
          InputError: if the parser that was asked for tells others apart; one that was found by
            default is missing then.
        """
        try:
            if self.parser is not None:
                self.parser.check(classes)
        except InputError as error:
            if not self.parser_is_default:
                raise
            sentence = f"mIoU, accuracy and FD-parser: {error} ({DEFAULT_PARSER} was found)"
            return dataclasses.replace(self, parser=None, missing=(*self.missing, sentence))
        return self


def load_networks(
    metrics: frozenset[str], weights: Path | None, parser: Path | None, lpips_network: str
) -> Networks:
    """Read what the metrics need.

    Args:
      metrics: names of `scoring.SCORES`.
      weights: folder of published weights.
      parser: whatever `load_parser` reads.
      lpips_network: "alex" or "vgg".

    For both None is the default, which need not exist.

    Raises:
      InputError: if a folder that is named does not exist, or a file cannot be used.
    """
    if weights is not None and not weights.is_dir():
        raise InputError(f"--weights {weights} is no folder: give one of published weights")
    weights = weights or DEFAULT_WEIGHTS
    missing = []
    found_parser = inception = lpips = None
    if metrics & {"fd_parser", "miou", "accuracy"}:
        if parser is not None or DEFAULT_PARSER.exists():
            found_parser = load_parser(parser or DEFAULT_PARSER)
        else:
            missing.append(
                f"mIoU, accuracy and FD-parser: there is no face parser at {DEFAULT_PARSER}; train "
                f"one ({TRAIN_PARSER}), or give --parser the published weights of CelebAMask-HQ's "
                "U-Net or of face-parsing.PyTorch's BiSeNet (79999_iter.pth) as safetensors"
            )
    if "fid" in metrics:
        if (weights / INCEPTION.file).exists():
            inception = load_inception(weights / INCEPTION.file)
        else:
            missing.append("FID: " + _absent(weights, [INCEPTION]))
    if "lpips_diversity" in metrics:
        files = [BACKBONES[lpips_network], LINEAR[lpips_network]]
        absent = [file for file in files if not (weights / file.file).exists()]
        if absent:
            missing.append("LPIPS diversity: " + _absent(weights, absent))
        else:
            lpips = load_lpips(*(weights / file.file for file in files))
    return Networks(
        parser=found_parser,
        inception=inception,
        lpips=lpips,
        missing=tuple(missing),
        parser_is_default=parser is None,
    )


def _absent(folder: Path, files: list[WeightFile]) -> str:
    named = " and ".join(f"{folder / file.file} ({file.source})" for file in files)
    return f"not there: {named}; convert to safetensors as README's 'Weight files' says"

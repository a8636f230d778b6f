"""Face parsers: networks that predict the class of every pixel of a face."""

from sisma_jax.models.face_parser.bisenet import BiSeNet
from sisma_jax.models.face_parser.config import FaceParserConfig
from sisma_jax.models.face_parser.files import load_parser, save_parser
from sisma_jax.models.face_parser.parser import FaceParser, parameter_shapes
from sisma_jax.models.face_parser.unet import FaceParserUNet

__all__ = [
    "BiSeNet",
    "FaceParser",
    "FaceParserConfig",
    "FaceParserUNet",
    "load_parser",
    "parameter_shapes",
    "save_parser",
]

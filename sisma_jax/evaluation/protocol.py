"""Description of the protocol of scores, for a report."""

from sisma_jax.evaluation.networks import Networks
from sisma_jax.evaluation.scoring import ENOUGH
from sisma_jax.metrics.image_quality import WINDOW
from sisma_jax.models.face_parser import FaceParser


def in_words(
    networks: Networks, scores: frozenset[str], resize: str, reference: str
) -> dict[str, str]:
    """Return a description of each score, by heading.

    Args:
      networks: the networks in use.
      scores: requested scores, by name in `scoring.SCORES`.
      resize: how Inception's inputs are resized.
      reference: description of the reference.
    """
    about = {"reference": reference}
    if networks.inception is not None:
        about["FID"] = (
            "Inception-v3 with the original weights (pt_inception-2015-12-05), 2048 pooled "
            f"features, inputs resized to 299 by {resize!r}, statistics in float64"
        )
    if networks.parser is not None:
        about |= _of_parser(networks.parser)
    if scores & {"ssim", "psnr_db"}:
        about["SSIM, PSNR"] = (
            f"pairs of bytes, data range 255, Gaussian window of {WINDOW} pixels, averaged over "
            "pictures"
        )
    if networks.lpips is not None:
        about["LPIPS diversity"] = (
            f"LPIPS v0.1, {networks.lpips.backbone.name}; mean of all pairs of the samples of one "
            "mask, averaged over masks"
        )
    if networks.inception is not None or networks.parser is not None:
        about["Fréchet distances"] = (
            f"biased upwards below {ENOUGH:,} pictures on either side; compare equal numbers only"
        )
    return about


def _of_parser(parser: FaceParser) -> dict[str, str]:
    quality = parser.quality or {}
    own = (
        f"its own mIoU {quality['test_miou']:.3f}, accuracy {quality['test_accuracy']:.3f} on "
        f"{quality['test_images']} test faces of {quality['data']}"
        if quality.keys() >= {"test_miou", "test_accuracy", "test_images", "data"}
        else "its own quality is known only from the row of test faces"
    )
    return {
        "mIoU, accuracy": (
            f"labels by {parser.name} ({own}) against the masks; one confusion matrix over all "
            "pixels, classes that occur nowhere left out of the mean, unlabelled pixels not counted"
        ),
        "FD-parser": (
            f"Fréchet distance of the deepest features of {parser.name}, averaged over the "
            "picture; no FID, and comparable only between reports with this parser"
        ),
    }

"""Metrics for pictures and label maps."""

from sisma_jax.metrics.frechet import frechet_distance
from sisma_jax.metrics.image_quality import psnr, ssim
from sisma_jax.metrics.perceptual import lpips
from sisma_jax.metrics.segmentation import (
    class_iou,
    confusion_matrix,
    mean_iou,
    pixel_accuracy,
)

__all__ = [
    "class_iou",
    "confusion_matrix",
    "frechet_distance",
    "lpips",
    "mean_iou",
    "pixel_accuracy",
    "psnr",
    "ssim",
]

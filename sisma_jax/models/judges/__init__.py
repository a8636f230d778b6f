"""Networks that measure pictures: Inception-v3, LPIPS, and VGG-19's features."""

"""Networks that measure pictures: Inception-v3 and LPIPS."""

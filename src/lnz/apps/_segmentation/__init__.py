"""Image segmentation."""

"""Semantic segmentation by conditional random fields with neural potentials."""

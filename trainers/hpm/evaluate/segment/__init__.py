"""Semantic segmentation with an exported encoder, tuned or frozen."""

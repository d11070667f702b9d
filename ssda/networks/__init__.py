"""Encoders, heads and the segmenter."""

"""Inference: upscaling images of any size in tiles, and showing the maps."""

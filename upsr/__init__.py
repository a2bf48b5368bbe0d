"""Uncertainty-guided diffusion super-resolution: UPSR (CVPR 2025, arXiv 2503.18512) and what grew from it."""

"""Diffusion: schedule, forward process, samplers, uncertainty variants, denoiser."""

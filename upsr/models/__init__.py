"""The two networks: ATD (atd.py), the auxiliary network g, and the Swin UNet (unet.py) of the denoiser."""

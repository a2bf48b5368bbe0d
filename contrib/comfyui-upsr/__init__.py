"""The ComfyUI node `Upscale Image (UPSR)`; importing it also lets `Load Upscale Model` load files of this project.

Link this folder into ComfyUI's `custom_nodes`: docs/operations.md says how.
"""

import torch
from torch import Tensor

import upsr.spandrel
from upsr import Upscaler
from upsr.pretrained import bundled

upsr.spandrel.install()


class UpscaleImage:
    """Bundled weights on a batch of images, in tiles that share one noise field."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "image": ("IMAGE",),
                "model": (bundled(),),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "0: as trained; fewer are faster"}),
                "tile": ("INT", {"default": 128, "min": 16, "max": 4096, "tooltip": "smaller needs less memory"}),
            }
        }

    def upscale(self, image: Tensor, model: str, seed: int, steps: int, tile: int) -> tuple[Tensor]:
        """(B, H, W, C) in [0, 1] -> (B, s·H, s·W, 3) in [0, 1]. Without a transparency, if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        upscaler = Upscaler.from_pretrained(model, device=device, steps=steps)
        lr = image[..., :3].movedim(-1, 1)
        large = torch.cat([upscaler.upscale(one[None], seed=seed, tile=tile).image for one in lr])
        return (large.movedim(1, -1),)


NODE_CLASS_MAPPINGS = {"UpsrUpscaleImage": UpscaleImage}
NODE_DISPLAY_NAME_MAPPINGS = {"UpsrUpscaleImage": "Upscale Image (UPSR)"}

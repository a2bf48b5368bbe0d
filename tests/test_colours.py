"""The colours of a result: those of the photograph, whatever the networks make of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import params, save_model
from skimage import data

from upsr.images import to_tensor
from upsr.inference.colours import with_colours_of
from upsr.inference.upscaler import Upscaler
from upsr.pretrained import load_pretrained, save_pretrained


def photograph(name: str = "chelsea", side: int = 192) -> torch.Tensor:
    return to_tensor(np.ascontiguousarray(getattr(data, name)()[:side, :side]))


def test_a_shift_is_undone_and_detail_stays():
    image = photograph()
    lr = F.avg_pool2d(image, 4)
    shifted = image + torch.tensor([0.02, -0.01, 0.005]).view(1, 3, 1, 1)
    assert torch.allclose(with_colours_of(lr, image), image, atol=1e-6)
    assert torch.allclose(with_colours_of(lr, shifted), image, atol=1e-6)


def test_detail_that_lr_lacks_is_not_taken_for_a_shift():
    """A pattern of the finest grain has no low frequencies, in LR as little as in the image."""
    image = photograph()
    lr = F.avg_pool2d(image, 4)
    grain = 0.1 * (-1.0) ** (torch.arange(192)[:, None] + torch.arange(192))
    assert torch.allclose(with_colours_of(lr, image + grain), image + grain, atol=1e-6)
    noise = 0.05 * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0))
    moved = (with_colours_of(lr + noise, image) - image).abs()
    assert moved.mean() < 0.1 * noise.abs().mean()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_starter_keeps_the_mean_of_every_channel(name: str):
    lr = F.avg_pool2d(photograph(name, 256), 4)
    upscaler = Upscaler.from_pretrained("starter")
    shift = 255 * (upscaler.upscale(lr, tile=64).image.mean((0, 2, 3)) - lr.mean((0, 2, 3)))
    assert shift.abs().max() < 0.3, shift


def test_a_trained_model_keeps_its_colours_only_if_its_file_says_so(tmp_path):
    path = save_model(tmp_path, params()) / "weights.safetensors"
    file, lr = load_pretrained(path), F.avg_pool2d(photograph(), 4)
    plain = Upscaler.from_pretrained(file).upscale(lr).image
    save_pretrained(path, file.parts, {**file.settings, "keeps_colours": True})
    kept = Upscaler.from_pretrained(path).upscale(lr).image
    assert not file.keeps_colours and not torch.equal(kept, plain)
    assert (kept - with_colours_of(lr, plain).clamp(0, 1)).abs().max() < 1.5 / 255  # both are rounded to 8 bit

"""The critic of adversarial training: its losses, who learns from which, and a training with it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import params, save_model
from torch import Tensor, nn

from pipelines.train_unet import fresh_denoiser, train_denoiser
from upsr import images
from upsr.config import ConfigError
from upsr.data.lmdb_store import pack
from upsr.models.critic import Critic, adversarial_losses
from upsr.pretrained import FILE, load_pretrained
from upsr.training.perceptual import WIDTHS, Lpips


def features(seed: int, batch: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, width, 32 >> i, 32 >> i, generator=random) for i, width in enumerate(WIDTHS)]
    return [nn.functional.normalize(x, dim=1) for x in maps]


def test_the_losses_by_hand():
    torch.manual_seed(0)
    critic, found, true = Critic().eval(), features(1), features(2)
    network, own = adversarial_losses(critic, found, true)
    by_head = zip(critic(found), critic(true), strict=True)
    means = [(-f.mean((1, 2, 3)), (1 - t).clamp(min=0).mean() + (1 + f).clamp(min=0).mean()) for f, t in by_head]
    assert torch.allclose(network, sum(n for n, _ in means) / len(means), atol=1e-6)
    assert own.item() == pytest.approx(sum(o.item() for _, o in means) / len(means), rel=1e-5)


def test_one_backward_pass_gives_each_its_own_gradient():
    """The network's loss must not move the critic, nor the critic's loss the network."""
    critic, true = Critic(), features(2)
    found = [x.requires_grad_() for x in features(1)]
    network, own = adversarial_losses(critic, found, true)
    own.backward()
    assert all(x.grad is None for x in found)
    assert all(weight.grad is not None for weight in critic.parameters())
    critic.zero_grad()
    network.sum().backward()
    assert [x.grad is not None for x in found] == [False, True, True, True, False]
    assert all(weight.grad is None for weight in critic.parameters())


def test_it_learns_to_tell_blur_from_photographs_and_the_gradient_sharpens(weights: Path):
    from skimage.data import astronaut

    torch.manual_seed(0)
    photo = images.to_tensor(np.ascontiguousarray(astronaut()[100:228, 180:308]))
    crops = photo.unfold(2, 64, 32).unfold(3, 64, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 64)
    blurred = nn.functional.avg_pool2d(crops, 5, 1, 2, count_include_pad=False)
    lpips, critic = Lpips(weights), Critic()
    adam = torch.optim.AdamW(critic.parameters(), 2e-3)
    _, found, true = lpips.compare(blurred, crops)
    for _ in range(40):
        adam.zero_grad()
        adversarial_losses(critic, found, true)[1].backward()
        adam.step()
    # from a mixture, a step down the network's loss goes towards the photograph
    mixture = (0.7 * blurred + 0.3 * crops).requires_grad_()
    _, found, true = lpips.compare(mixture, crops)
    fooling, own = adversarial_losses(critic.eval(), found, true)
    assert own < 1.5  # of 2 at the beginning
    fooling.sum().backward()
    assert (mixture.grad * (crops - blurred)).sum() < 0


def test_without_its_weight_there_is_no_critic():
    assert not hasattr(fresh_denoiser(params()), "critic")
    with pytest.raises(ConfigError, match="adversarial_weight needs LPIPS's features: set lpips_weight above 0"):
        params(train_unet={"adversarial_weight": 0.1, "lpips_weight": 0})


class Killed(Exception):
    pass


def test_a_training_with_a_critic_resumes_and_its_model_has_none(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    p = params(
        train={"select": {"psnr": 1, "lpips": 0}, "log_every": 1},
        train_unet={"lpips_weight": 0.5, "adversarial_weight": 0.1},
    )

    def killed_in_the_third_step(g: nn.Module) -> nn.Module:
        calls = iter(range(5))  # a validation has two

        def count(*_: object) -> None:
            if next(calls) == 4:
                raise Killed

        g.register_forward_pre_hook(count)
        return g

    from skimage.data import astronaut

    for name in ("whole", "cut"):
        folder = tmp_path / name
        for i in range(4):
            patch = np.ascontiguousarray(astronaut()[180:212, 40 * i : 40 * i + 32])
            for place in ("in", "data/validation"):
                images.write(folder / place / f"{i}.png", patch)
        pack(folder / "in", folder / "data/train.lmdb", "png")
        save_model(folder / "models/atd", p)
        (folder / "data/metric_weights").symlink_to(weights)
        monkeypatch.chdir(folder)
        if name == "cut":
            with pytest.raises(Killed):
                train_denoiser(p, killed_in_the_third_step)
        train_denoiser(p)
    assert "resuming from step 2" in capsys.readouterr().out
    whole, cut = (tmp_path / name / "models/unet" for name in ("whole", "cut"))
    assert (cut / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert load_pretrained(whole / FILE).parts.keys() == {"atd", "unet"}
    with (whole / "log.csv").open() as log:
        rows = list(csv.DictReader(log))
    assert len({row["critic"] for row in rows}) == len({row["adversarial"] for row in rows}) == 4

"""docs/extending.md: its variant of uncertainty, applied to a copy of the library, trains, is shown and upscales."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

SCRIPT = """
from pathlib import Path

import torch
from conftest import params, save_model
from upsr import images
from upsr.__main__ import main
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import build_degradation
from upsr.diffusion.denoiser import build_denoiser
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.training.pairs import Pairs
from upsr.training.perceptual import PerceptualLoss
from upsr.training.unet_objective import UnetObjective

p = params(uncertainty={"variant": "local_variance", "local_variance": {"window": 3, "sigma_max": 0.2}})
pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 2))
objective = UnetObjective(pairs, PerceptualLoss(0, "proper", ""), build_atd(p.atd, 4), 4)
denoiser = build_denoiser(
    build_unet(p.unet, 4), unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4
)
half = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
half[..., 16:] = torch.randint(0, 255, (2, 3, 32, 16), dtype=torch.uint8)
loss, seen = objective.loss(denoiser, *objective.draw(half, (0, 0)))
loss.backward()
assert torch.isfinite(loss) and 0.4 < seen["weight"] < 1
assert all(w.grad is not None for w in denoiser.network.parameters() if w.requires_grad)

save_model(Path("model"), p)
lr = torch.full((1, 3, 24, 24), 0.5)
lr[..., 12:] = torch.rand(1, 3, 24, 12)
weight = Upscaler.from_pretrained("model").upscale(lr).maps["weight"]
assert weight[..., :40].max() < 0.41 and weight[..., 56:].mean() > 0.8
images.write("photo.png", images.to_image(lr))
main(["upscale", "photo.png", "-o", "large.png", "--model", "model", "--save-maps"])
assert Upscaler.from_pretrained("upsr-48").scale == 4
"""


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the library with what the document says."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (module,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (change,) = re.findall(r"```diff\n(.*?)```", text, re.S)
    (keys,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    for name in ("upsr", "tests/conftest.py", "tests/services.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if name == "upsr" else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "upsr" / "diffusion" / "uncertainty" / "local_variance.py").write_text(module)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["uncertainty"] |= yaml.safe_load(keys)["uncertainty"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=change, text=True, check=True)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{folder / 'tests'}"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_documents_variant_trains_and_upscales(extended: Path):
    done = run(extended, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in extended.glob("large*.png")} == {
        "large.png", *(f"large.{name}.png" for name in ("residual", "deviation", "mix", "weight"))
    }  # fmt: skip


@pytest.mark.slow
def test_the_documents_variant_is_typed(extended: Path):
    done = run(extended, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "upsr/diffusion", "upsr/config")
    assert done.returncode == 0, done.stdout

"""`upsr export --onnx`: other programs compute what torch does, at every size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from conftest import ROOT, params, save_model
from torch import Tensor

import upsr.onnx
from upsr import images
from upsr.__main__ import main
from upsr.inference.upscaler import Upscaler

pytestmark = pytest.mark.timeout(1800)  # an export takes minutes on a busy machine
SETTINGS = params(unet={"branches": 2, "hr_inputs": True, "skip": "edm"})  # every input that a UNet may have


class Exported(torch.nn.Module):
    """A network of ONNX Runtime, called as the one that was exported."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path)

    def forward(self, *inputs: Tensor, **more: Tensor) -> Tensor:
        named = dict(zip((value.name for value in self.session.get_inputs()), inputs, strict=False)) | more
        return torch.from_numpy(self.session.run(None, {name: x.numpy() for name, x in named.items()})[0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), SETTINGS)


@pytest.fixture(scope="module")
def exported(tiny: Path) -> Path:
    main(["export", "--model", str(tiny), "--onnx", str(tiny / "onnx")])
    return tiny / "onnx"


def photo(height: int, width: int) -> Tensor:
    return images.round8(images.resize(images.to_tensor(skimage.data.chelsea()[:160, :240]), (height, width)))


@pytest.mark.slow
def test_both_networks_upscale_as_in_torch(tiny: Path, exported: Path):
    upscaler, other = Upscaler.from_pretrained(tiny), Upscaler.from_pretrained(tiny)
    assert other.diffuser is not None
    other.atd = Exported(exported / "atd.onnx")  # type: ignore[assignment]
    other.diffuser.denoiser.network = Exported(exported / "unet.onnx")
    for size in ((1, 1), (21, 9), (33, 40)):
        expected, got = (u.upscale(photo(*size)) for u in (upscaler, other))
        assert (got.image - expected.image).abs().max() < 1 / 255 + 1e-6
        assert (got.maps["residual"] - expected.maps["residual"]).abs().max() < 1e-5


@pytest.mark.slow
def test_a_file_says_what_it_is(exported: Path):
    for name in ("atd", "unet"):
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        about = session.get_modelmeta().custom_metadata_map
        assert about["scale"] == "4" and "Apache-2.0" in about["licence"]
        assert json.loads(about["settings"])[name] == getattr(SETTINGS, name).model_dump(mode="json")
        assert all(about[value.name] for value in (*session.get_inputs(), *session.get_outputs()))
        assert str(ROOT).encode() not in (exported / f"{name}.onnx").read_bytes()


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(tiny: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(upsr.onnx, "LIMIT", -1)
    refused(capsys, "atd.onnx: in onnxruntime it differs", tiny, tmp_path / "new", "--network", "atd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_example_of_the_manual_enlarges_a_photo(tmp_path: Path):
    main(["export", "--model", "atd-48", "--onnx", str(tmp_path / "onnx")])
    images.write(tmp_path / "photo.png", images.to_image(photo(50, 70)))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.S)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = images.to_image(Upscaler.from_pretrained("atd-48").upscale(photo(50, 70)).image)
    # where rounding decides a pixel's category, other pixels change too
    assert np.abs(images.read(tmp_path / "large.png").astype(int) - expected).mean() < 4


def refused(capsys: pytest.CaptureFixture[str], line: str, model: Path | str, folder: Path, *more: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--model", str(model), "--onnx", str(folder), *more])
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_an_export_that_cannot_be_is_refused_in_one_line(tmp_path: Path, monkeypatch, capsys):
    refused(capsys, f"{tmp_path}: exists already: name a new folder", "atd-48", tmp_path)
    new = tmp_path / "new"
    refused(capsys, "has no network `unet`: name weights that have one", "atd-48", new, "--network", "unet")
    odd = save_model(tmp_path / "odd", params(atd={"category_size": 48}))
    refused(capsys, "atd.category_size 48 does not divide the 64 pixels of a window", odd, new)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "upsr.onnx")
    refused(capsys, "install the extra `export`", "atd-48", new)
    assert not new.exists()

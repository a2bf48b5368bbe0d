"""Pictures on disk and in memory."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from upsr import files, images
from upsr.images import ImageError


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read(tmp_path: Path, channels: int, dtype: type):
    image = noise(5, 7, channels, dtype=dtype)
    images.write(tmp_path / "a.png", image)
    assert np.array_equal(images.read(tmp_path / "a.png"), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_every_kind_becomes_8_bit_rgb(tmp_path: Path):
    images.write(tmp_path / "grey16.png", np.full((4, 4, 1), 65535, np.uint16))
    images.write(tmp_path / "alpha.png", noise(4, 4, 4))
    assert (images.read_rgb(tmp_path / "grey16.png") == 255).all()
    assert images.read_rgb(tmp_path / "grey16.png").shape == (4, 4, 3)
    assert np.array_equal(images.read_rgb(tmp_path / "alpha.png"), noise(4, 4, 4)[:, :, :3])


def test_a_camera_held_upright_is_upright(tmp_path: Path):
    ok, jpeg = cv2.imencode(".jpg", noise(8, 16, 3))
    assert ok
    # EXIF with one entry: orientation (0x0112) = 6, "turn right".
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    data = jpeg.tobytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "upright.jpg").write_bytes(data[:2] + segment + data[2:])
    assert images.read(tmp_path / "upright.jpg").shape == (16, 8, 3)


def test_what_follows_a_whole_jpeg_does_not_matter(tmp_path: Path):
    """Phones append a film to a picture."""
    images.write(tmp_path / "a.jpg", noise(8, 16, 3))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data + bytes(100_000))
    assert images.read(tmp_path / "a.jpg").shape == (8, 16, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_16_bit_is_rounded_where_a_format_holds_8(tmp_path: Path, suffix: str):
    images.write(tmp_path / f"a{suffix}", np.full((16, 16, 3), 20000, np.uint16))
    assert abs(int(images.read(tmp_path / f"a{suffix}")[8, 8, 0]) - 78) <= 2


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_torn_file_is_named(tmp_path: Path, suffix: str, kept: float):
    path = tmp_path / f"torn{suffix}"
    images.write(path, noise(64, 64, 3))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=f"torn{suffix}"):
        images.read(path)


def test_what_is_no_picture_is_named(tmp_path: Path):
    (tmp_path / "notes.png").write_text("not a picture")
    for path, message in (("notes.png", "not a readable"), ("absent.png", "cannot be read")):
        with pytest.raises(ImageError, match=message):
            images.read(tmp_path / path)
    with pytest.raises(ImageError, match=r"use \.png"):
        images.write(tmp_path / "a.xyz", noise(4, 4, 3))
    with pytest.raises(ImageError, match="no such folder"):
        images.find(tmp_path / "nowhere")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (2, 5)])
def test_padding_reflects_however_small_the_picture(size: tuple[int, int]):
    x = torch.rand(1, 3, *size)
    padded = images.pad_to(x, 20, 24)
    assert padded.shape == (1, 3, 20, 24)
    assert torch.equal(padded[:, :, : size[0], : size[1]], x)
    if size == (7, 9):
        expected = torch.nn.functional.pad(x, (0, 8, 0, 6), mode="reflect")
        assert torch.equal(padded[:, :, :13, :17], expected)


@pytest.mark.parametrize(("size", "target"), [((12, 16), (48, 64)), ((64, 48), (16, 12))])
def test_resize_is_matlabs(size: tuple[int, int], target: tuple[int, int]):
    matlab = pytest.importorskip("pyiqa.matlab_utils")
    x = torch.rand(1, 3, *size)
    assert (images.resize(x, target) - matlab.imresize(x, scale=target[0] / size[0])).abs().max() < 1e-5


def test_luma_of_black_and_white_keeps_head_room():
    assert (images.luma(torch.zeros(1, 3, 1, 1)) * 255).item() == pytest.approx(16)
    assert (images.luma(torch.ones(1, 3, 1, 1)) * 255).item() == pytest.approx(235)


def test_tensors_and_back():
    for dtype in (np.uint8, np.uint16):
        image = noise(3, 4, 3, dtype=dtype)
        assert np.array_equal(images.to_image(images.to_tensor(image), dtype), image)

"""Pictures on disk and in memory."""

import io
import os
import resource
import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from upsr import files, images
from upsr.__main__ import main
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_png(width: int, height: int) -> bytes:
    """A valid black image in few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def resized_header(suffix: str) -> bytes:
    """An image of few bytes whose header says that it has 30000 × 30000 pixels."""
    data = io.BytesIO()
    Image.new("RGB", (40, 30)).save(data, {".jpg": "JPEG", ".bmp": "BMP", ".tif": "TIFF"}[suffix])
    sizes = {
        ".jpg": (">HH", 30, 40),
        ".bmp": ("<ii", 40, 30),
    }
    if suffix == ".tif":  # the tags 256 and 257: LONG or SHORT, one value
        tiff = data.getvalue()
        for tag, old in ((256, 40), (257, 30)):
            for kind in (3, 4):
                tiff = tiff.replace(struct.pack("<HHII", tag, kind, 1, old), struct.pack("<HHII", tag, kind, 1, 30000))
        return tiff
    code, *old = sizes[suffix]
    assert data.getvalue().count(struct.pack(code, *old)) == 1
    return data.getvalue().replace(struct.pack(code, *old), struct.pack(code, 30000, 30000))


@pytest.mark.parametrize("size", [(30_000, 30_000), (24_000, 24_000)])
def test_an_image_of_too_many_pixels_is_not_decoded(size: tuple[int, int]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = large_png(*size)
    before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    with pytest.raises(ImageError, match=r"^big\.png: more than 537 megapixels: cut it into parts or remove it$"):
        images.decode(data, "big.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tif"])  # a WebP has 268 megapixels at most
def test_the_bound_holds_for_every_format(suffix: str):
    with pytest.raises(ImageError, match=r"more than 537 megapixels|exceeds limit"):
        images.decode(resized_header(suffix), f"big{suffix}")


def test_a_png_with_a_long_text_is_read():
    """As programs that generate images write them."""
    text = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2_000_000)))
    data = large_png(30, 20)
    assert images.decode(data[:33] + text + data[33:], "text.png").shape == (20, 30, 1)


def test_a_long_image_within_the_bound_is_read():
    assert images.decode(large_png(100_000, 1), "long.png").shape == (1, 100_000, 1)


@pytest.mark.filterwarnings("error")
def test_an_image_within_the_bound_gives_no_warning():
    assert images.decode(large_png(11_000, 10_000), "large.png").shape == (10_000, 11_000, 1)


def test_pipes_folders_and_sockets_are_no_images(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        (tmp_path / "null.png").symlink_to("/dev/null")
        (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
        images.write(tmp_path / "a.png", noise(4, 4, 3))
        assert [p.name for p in images.find(tmp_path)] == ["a.png", "lost.png"]
        for name in ("pipe.png", "folder.png", "socket.png", "null.png", "lost.png"):
            with pytest.raises(ImageError, match=f"{name}: cannot be read: "):
                images.read(tmp_path / name)


def test_a_batch_skips_what_is_too_large_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "fine.png", noise(9, 8, 3))
    (tmp_path / "in" / "large.png").write_bytes(large_png(24_000, 24_000))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    with pytest.raises(SystemExit):
        main(["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 2 and "large.png: more than 537 megapixels" in lines[0] and "1 of 2 images" in lines[1]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fine.png"]
    with pytest.raises(SystemExit):
        main(["upscale", str(tmp_path / "in" / "pipe.png"), "-o", str(tmp_path / "out")])
    assert "pipe.png: cannot be read: a folder, a pipe or a device" in capsys.readouterr().err

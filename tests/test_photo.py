"""Image files as photographers have them: turned, in other colours, transparent, deep, damaged, of many formats."""

import io
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

from upsr import images
from upsr.files import ImageError
from upsr.inference.upscaler import Upscaler
from upsr.photo.formats import FORMATS
from upsr.photo.reading import Photo, as_photo, decode, open_photo
from upsr.photo.writing import check_target, save


class Nearest(nn.Module):
    """A network that repeats each pixel, so that a result's values are known."""

    scale, window = 4, 1

    def forward(self, lr: Tensor) -> Tensor:
        return F.interpolate(lr, scale_factor=4, mode="nearest")


@pytest.fixture
def upscaler() -> Upscaler:
    return Upscaler(Nearest(), None)  # type: ignore[arg-type]


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 that JPEG keeps nearly unchanged."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# Orientation


def marked(orientation: int, form: str) -> bytes:
    """A 32×24 image with a red mark near its stored upper left corner."""
    values = np.zeros((24, 32, 3), np.uint8)
    values[2:8, 2:8, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    return encoded(Image.fromarray(values), form, exif=exif, **options)


CORNERS = {1: "00", 2: "01", 3: "11", 4: "10", 5: "00", 6: "01", 7: "11", 8: "10"}  # (lower, right) of the mark


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif")])
def test_a_turned_image_is_upright_and_its_result_too(
    tmp_path: Path, upscaler: Upscaler, orientation: int, form: str, suffix: str
):
    (tmp_path / f"a{suffix}").write_bytes(marked(orientation, form))
    for target in ("b.png", "b.jpg", "b.webp", "b.tif"):
        upscaler.upscale_file(tmp_path / f"a{suffix}", tmp_path / target)
        result = open_photo(tmp_path / target).array()
        assert result.shape[:2] == ((128, 96) if orientation > 4 else (96, 128))
        rows, columns = np.nonzero(result[:, :, 0] > 128)
        lower, right = rows.mean() > result.shape[0] / 2, columns.mean() > result.shape[1] / 2
        assert f"{lower:d}{right:d}" == CORNERS[orientation]
        assert Image.open(tmp_path / target).getexif().get(0x0112, 1) == 1


# Colours


def exchanged() -> bytes:
    """A profile in which red and green are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = (profile.index(tag, 128 + 4) for tag in (b"rXYZ", b"gXYZ"))
    swapped = bytearray(profile)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(swapped)


EXCHANGED = exchanged()  # once: a profile holds the time at which it was made


def seen(path: Path) -> np.ndarray:
    """(H, W, 3) sRGB as a colour-managed viewer shows it, by LittleCMS."""
    image = Image.open(path)
    source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    shown = ImageCms.profileToProfile(image.convert("RGB"), source, ImageCms.createProfile("sRGB"))
    assert shown is not None
    return np.asarray(shown)


@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.webp", "b.tif", "b.avif"])
def test_a_profile_is_honoured_and_kept(tmp_path: Path, upscaler: Upscaler, target: str):
    image = Image.new("RGB", (16, 16), (200, 40, 40))
    image.save(tmp_path / "a.png", icc_profile=EXCHANGED)
    assert np.abs(open_photo(tmp_path / "a.png").array().astype(int) - (40, 200, 40)).max() <= 1
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / target)
    assert open_photo(tmp_path / target).profile == EXCHANGED
    assert np.abs(seen(tmp_path / target).astype(int) - (40, 200, 40)).max() <= 2


def test_a_format_without_profiles_gets_srgb(tmp_path: Path, upscaler: Upscaler):
    Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / "a.png", icc_profile=EXCHANGED)
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.bmp")
    assert np.abs(open_photo(tmp_path / "b.bmp").array().astype(int) - (40, 200, 40)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_beyond_srgb_survive(tmp_path: Path, upscaler: Upscaler, dtype: type):
    """Display P3's own red, green and blue lie outside of sRGB."""
    p3, white = pyvips.Image.profile_load("p3"), np.iinfo(dtype).max
    values = (np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0.9, 0.3, 0.1]]]) * white).astype(dtype)
    pixels = values.repeat(8, axis=0).repeat(8, axis=1)
    save(tmp_path / "a.png", pixels, Photo(pixels, profile=p3))
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    result = open_photo(tmp_path / "b.png")
    assert result.profile == p3 and result.foreign
    expected = values.repeat(32, axis=0).repeat(32, axis=1)
    assert np.abs(result.pixels.astype(int) - expected).max() <= white * 0.003


def test_most_profiles_are_srgb_and_change_no_value(tmp_path: Path, upscaler: Upscaler):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise(6, 7, 3)).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(open_photo(tmp_path / "a.png").array(), noise(6, 7, 3))
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    assert open_photo(tmp_path / "b.png").profile == profile
    assert np.array_equal(open_photo(tmp_path / "b.png").array()[::4, ::4], noise(6, 7, 3))


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200, EXCHANGED[:300]])
def test_a_damaged_profile_is_left_out(tmp_path: Path, profile: bytes):
    Image.fromarray(noise(6, 7, 3)).save(tmp_path / "a.png", icc_profile=profile)
    photo = open_photo(tmp_path / "a.png")
    assert photo.profile is None
    assert np.array_equal(photo.array(), noise(6, 7, 3))


def test_cmyk_becomes_srgb():
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    photo = decode(red, "cmyk.jpg")
    assert photo.profile is None
    pixel = photo.pixels[8, 8].astype(int)
    assert pixel[0] > 200 and pixel[1] < 80 and pixel[2] < 80


# Metadata

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="6" tiff:ImageWidth="32" dc:source="a lake">'
    b"<tiff:ImageLength>24</tiff:ImageLength></rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("source", ["a.jpg", "a.tif"])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.webp", "b.avif", "b.tif"])
def test_metadata_is_kept_and_corrected(tmp_path: Path, upscaler: Upscaler, source: str, target: str):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Camera & Co", "me"
    exif[0x8769] = {0x920A: 35.0, 0xA002: 32}  # focal length, width
    exif[0x8825] = {1: "N"}  # position
    more: dict[str, Any] = {"xmp": XMP, "quality": 95}
    if source == "a.tif":
        exif[0x02BC], more = XMP, {}
    Image.fromarray(smooth(24, 32)).save(tmp_path / source, exif=exif.tobytes(), dpi=(300, 300), **more)
    upscaler.upscale_file(tmp_path / source, tmp_path / target)
    result = open_photo(tmp_path / target)
    assert result.pixels.shape == (128, 96, 3)
    found = Image.open(tmp_path / target).getexif()
    assert (found[0x010F], found[0x8298]) == ("Camera & Co", "me")
    assert found.get(0x0112, 1) == 1
    assert found.get_ifd(0x8769)[0x920A] == 35.0
    assert found.get_ifd(0x8769)[0xA002] == 96
    assert found.get_ifd(0x8825)[1] == "N"
    xmp = pyvips.Image.new_from_file(str(tmp_path / target)).get("xmp-data").decode()
    assert 'dc:source="a lake"' in xmp and 'tiff:Orientation="1"' in xmp
    assert 'tiff:ImageWidth="96"' in xmp and "<tiff:ImageLength>128<" in xmp


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_damaged_metadata_loses_no_image(tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[0x8769] = {0x920A: 35.0}
    file = bytearray(
        encoded(Image.fromarray(smooth(24, 32)), {"jpg": "JPEG", "tif": "TIFF"}[suffix], exif=exif.tobytes())
    )
    pointer = file.index(b"\x87\x69" if suffix == "jpg" else b"\x69\x87")
    file[pointer + 8 : pointer + 12] = b"\xff\xff\xff\xff"
    photo = decode(bytes(file), "a")
    assert photo.header is not None
    save(tmp_path / "b.tif", photo.array(), photo)
    assert np.array_equal(open_photo(tmp_path / "b.tif").array(), photo.array())


@pytest.mark.parametrize("middle", ["m.jpg", "m.tif"])
def test_iptc_and_resolution_are_kept(tmp_path: Path, upscaler: Upscaler, middle: str):
    image = pyvips.Image.new_from_array(smooth(24, 32), interpretation="srgb").copy(xres=12, yres=12)
    iptc = b"Photoshop 3.0\08BIM\x04\x04\0\0\0\0\0\x0b\x1c\x02\x78\0\x06a lake\0"
    image.set_type(pyvips.GValue.blob_type, "iptc-data", iptc)
    image.jpegsave(str(tmp_path / "a.jpg"))
    upscaler.upscale_file(tmp_path / "a.jpg", tmp_path / middle)
    upscaler.upscale_file(tmp_path / middle, tmp_path / "b.jpg")
    result = pyvips.Image.new_from_file(str(tmp_path / "b.jpg"))
    assert b"a lake" in result.get("iptc-data")
    assert result.xres == pytest.approx(12, rel=0.05)


# Transparency


def test_no_dark_fringe(tmp_path: Path, upscaler: Upscaler):
    """An opaque block on transparent black."""
    image = np.zeros((24, 40, 4), np.uint8)
    image[6:18, 10:30] = (250, 200, 30, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    for network in (upscaler, Upscaler.from_pretrained("atd-48")):
        network.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
        result = open_photo(tmp_path / "b.png").array().astype(int)
        assert result[:, :, 0][result[:, :, 3] > 0].min() >= 235
        assert (result[28:68, 44:116, 3] == 255).all() and (result[:, :28, 3] == 0).all()


def test_what_is_opaque_keeps_its_colours(upscaler: Upscaler):
    image = noise(20, 20, 4)
    image[:, :, 3] = np.where(np.arange(20) < 10, 255, 16)
    assert np.array_equal(upscaler(image)[::4, ::4, :3], image[:, :, :3])


def test_a_grey_image_with_a_transparent_value_keeps_it(tmp_path: Path, upscaler: Upscaler):
    values = np.full((8, 8), 7, np.uint8)
    values[:, 4:] = 200
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    result = open_photo(tmp_path / "b.png")
    assert result.pixels.shape == (32, 32, 1) and result.alpha is not None
    assert (result.alpha[:, :12] == 0).all() and (result.alpha[:, 20:] == 255).all()
    assert (result.pixels[:, 20:] == 200).all()


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_below_what_is_transparent_lies_the_background(tmp_path: Path, suffix: str):
    image = np.zeros((16, 16, 4), np.uint8)
    for background in ((255, 255, 255), (0, 0, 255)):
        save(tmp_path / f"a{suffix}", image, background=background)
        found = open_photo(tmp_path / f"a{suffix}").array()
        assert found.shape == (16, 16, 3) and np.abs(found.astype(int) - background).max() <= 3
    save(tmp_path / f"a{suffix}", image[:, :, :2])
    assert (open_photo(tmp_path / f"a{suffix}").array() > 250).all()


# Depth


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_stay_16_bits(tmp_path: Path, upscaler: Upscaler, suffix: str, channels: int):
    image = noise(5, 6, channels, dtype=np.uint16)
    if channels in (2, 4):
        image[:, :, -1] = 65535
    save(tmp_path / f"a{suffix}", image)
    upscaler.upscale_file(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    result = open_photo(tmp_path / f"b{suffix}").array()
    assert result.dtype == np.uint16 and result.shape == (20, 24, channels)
    assert np.array_equal(result[::4, ::4], image)


# Whole and damaged files


def jpeg(progressive: bool = False, size: int = 128) -> bytes:
    return encoded(Image.fromarray(noise(size, size, 3)), "JPEG", quality=90, progressive=progressive)


def scans(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(b"\xff\xda", data)]


PROGRESSIVE = jpeg(progressive=True)
THUMBNAIL = b"\xff\xe1" + (len(jpeg(size=32)) + 8).to_bytes(2) + b"Exif\0\0" + jpeg(size=32)
WHOLE = {
    "fill bytes before a marker": jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "data behind the end": jpeg() + bytes(70_000),
    "another image behind the end": jpeg() + jpeg(size=64),
    "a thumbnail inside": jpeg()[:2] + THUMBNAIL + jpeg()[2:],
    "padding before the end": jpeg()[:-2] + bytes(30) + jpeg()[-2:],
    "progressive": PROGRESSIVE,
    "restart markers": encoded(Image.fromarray(noise(64, 64, 3)), "JPEG", restart_marker_blocks=1),
    "a PNG with data behind its end": encoded(Image.fromarray(noise(9, 9, 3)), "PNG") + bytes(70_000),
}
DAMAGED = {
    "half": jpeg()[: len(jpeg()) // 2],
    "half, with an end": jpeg()[: len(jpeg()) // 2] + b"\xff\xd9",
    "a third, then another": jpeg()[: len(jpeg()) // 3] + jpeg(),
    "half a progressive": PROGRESSIVE[: len(PROGRESSIVE) // 2],
    "the first scan alone": PROGRESSIVE[: scans(PROGRESSIVE)[1]] + b"\xff\xd9",
    "the last scan is missing": PROGRESSIVE[: scans(PROGRESSIVE)[-1]] + b"\xff\xd9",
    "half, with a thumbnail": (jpeg()[:2] + THUMBNAIL + jpeg()[2:])[: len(THUMBNAIL) + len(jpeg()) // 2],
    "nothing": b"",
    "text": b"no image",
    "half a PNG": encoded(Image.fromarray(noise(64, 64, 3)), "PNG")[:5000],
    "half a WebP": encoded(Image.fromarray(noise(64, 64, 3)), "WEBP", lossless=True)[:5000],
    "half a TIFF": encoded(Image.fromarray(noise(64, 64, 3)), "TIFF")[:5000],
    "half an AVIF": encoded(Image.fromarray(noise(64, 64, 3)), "AVIF")[:3000],
    "half a BMP": encoded(Image.fromarray(noise(64, 64, 3)), "BMP")[:5000],
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read(name: str):
    assert decode(WHOLE[name], "whole").pixels.shape[0] in (128, 64, 9)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(name: str, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ImageError, match=r"^damaged: .*: replace or remove it$") as error:
        decode(DAMAGED[name], "damaged")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


# Formats


@pytest.mark.parametrize("suffix", [suffix for form in FORMATS.values() for suffix in form.suffixes])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_format_is_written_and_read(tmp_path: Path, suffix: str, channels: int):
    image = smooth(40, 48)[:, :, [0, 1, 2, 0]][:, :, -channels:]
    if channels in (2, 4):
        image[:, :, -1] = np.where(np.arange(48) < 24, 255, 128)
    save(tmp_path / f"a{suffix}", image)
    found = open_photo(tmp_path / f"a{suffix}").array()
    form = next(form for form in FORMATS.values() if suffix in form.suffixes)
    opaque = image[:, :20] if form.alpha else image[:, :20, : 3 if channels >= 3 else 1]
    found = found[:, :20] if found.shape[2] >= opaque.shape[2] else found
    assert np.abs(found[:, :, [0]].astype(int) - opaque[:, :, [0]]).max() <= (8 if form.quality else 0)


def test_a_limit_of_a_format_is_known_before_any_work():
    for name, side in (("a.jpg", 65_536), ("a.webp", 16_384), ("a.avif", 16_385)):
        with pytest.raises(ImageError, match=rf"{name}: \w+ holds {side - 1} pixels a side, not {side}x10: write .png"):
            check_target(Path(name), side, 10)
        check_target(Path(name), side - 1, 10)


def test_frames_and_other_depths_are_named(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        if form == "PNG":  # an animation whose first frame any decoder shows
            continue
        with pytest.raises(ImageError, match=r"a: 2 frames or pages: save one as a file of its own$"):
            decode(data, "a")
        assert decode(data, "a", first_frame=True).pixels[4, 4, 0] > 200
    floats = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="a: its values are of the type float: save it with 8 or 16 bits"):
        decode(floats, "a")


def test_what_a_phone_writes_is_read(tmp_path: Path, upscaler: Upscaler):
    """HEIC with EXIF."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x010F] = "Phone"
    data = encoded(Image.new("RGB", (64, 48), (200, 40, 40)), "HEIF", exif=exif, quality=95)
    (tmp_path / "a.heic").write_bytes(data)
    photo = open_photo(tmp_path / "a.heic")
    assert photo.pixels.shape == (48, 64, 3) and np.abs(photo.pixels.astype(int) - (200, 40, 40)).max() <= 4
    upscaler.upscale_file(tmp_path / "a.heic", tmp_path / "b.jpg")
    result = Image.open(tmp_path / "b.jpg")
    assert result.size == (256, 192) and result.getexif()[0x010F] == "Phone"
    with pytest.raises(ImageError, match="cut: not a readable image"):
        decode(data[: len(data) // 2], "cut")


def test_a_forked_process_gets_one_line_instead_of_waiting_for_ever(tmp_path: Path):
    save(tmp_path / "a.png", noise(4, 4, 3))
    open_photo(tmp_path / "a.png")
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(ImageError, match="method `spawn`"):
        pool.apply_async(open_photo, [tmp_path / "a.png"]).get(timeout=60)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(images.read_rgb, [tmp_path / "a.png"]).shape == (4, 4, 3)


# What Python gives


def test_python_gives_any_kind_of_image(tmp_path: Path, upscaler: Upscaler):
    image = noise(6, 7, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        assert np.array_equal(upscaler(given)[::4, ::4], image)
    floats = image.astype(np.float64) / 255
    assert np.abs(upscaler(floats)[::4, ::4] - floats).max() < 1e-6
    assert upscaler(image[:, :, 0]).shape == (24, 28)
    assert upscaler(Image.fromarray(image[:, :, 0])).shape == (24, 28, 1)
    assert upscaler(Image.fromarray(image).convert("P")).shape == (24, 28, 3)
    bits = Image.fromarray(image[:, :, 0] > 128)
    assert set(np.unique(upscaler(bits))) == {0, 255}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "int: no image: give a path, a PIL image or a NumPy array"),
        (np.zeros((4, 4, 3), np.int32), "an array of int32: give uint8, uint16, or floats"),
        (np.full((4, 4, 3), 200.0), r"an array of floats beyond \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"an array of floats beyond \[0, 1\]"),
        (np.zeros((4, 4, 5), np.uint8), r"an array of shape \(4, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"an array of shape \(0, 4, 3\)"),
        (Image.new("F", (4, 4)), "a PIL image of mode F"),
        (Path("nowhere.png"), "nowhere.png: cannot be read"),
    ],
)
def test_what_is_no_image_is_one_line(given: object, message: str):
    with pytest.raises(ValueError, match=message):
        as_photo(given)  # type: ignore[arg-type]

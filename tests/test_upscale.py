"""`upsr upscale`: where results go, what they look like, and what happens to a batch."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import params, save_model
from PIL import Image
from test_photo import DAMAGED, Nearest, noise

from upsr import images
from upsr.__main__ import main
from upsr.commands.upscale import interruptible
from upsr.files import ImageError
from upsr.inference import batch
from upsr.inference.batch import canvas, plan
from upsr.inference.upscaler import Upscaler
from upsr.photo.reading import open_photo
from upsr.photo.size import Size


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = {"dim": 16, "window": 4, "lr_size": 8}
    return save_model(tmp_path_factory.mktemp("model"), params(unet=unet, diffusion={"steps": 2}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `in` with images and a folder of more."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "deep/er/c.webp"):
        images.write(Path("in", name), noise(6, 7, 3))
    return tmp_path


def upsr(*arguments: object) -> int:
    """Runs the command; returns its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def below(path: str) -> set[str]:
    return {str(p.relative_to(path)) for p in Path(path).rglob("*") if p.is_file()}


# Names


def targets(*inputs: str, output: str | None = None, suffix: str = "", form: str = "png") -> list[str]:
    return [str(job.target) for job in plan([Path(p) for p in inputs], output and Path(output), suffix, form)]


def test_results_keep_the_folders_of_their_sources(folder: Path):
    assert targets("in", output="out") == ["out/a.png", "out/b.png", "out/deep/er/c.png"]
    assert targets("in", output="out", form="same") == ["out/a.png", "out/b.jpg", "out/deep/er/c.webp"]
    assert targets("in/a.png", "in/b.jpg", output="out", suffix="_big") == ["out/a_big.png", "out/b_big.png"]


def test_without_o_results_lie_beside_their_sources(folder: Path):
    assert targets("in/b.jpg", suffix="_x4") == ["in/b_x4.png"]
    assert targets("in", suffix="_x4", form="avif") == ["in/a_x4.avif", "in/b_x4.avif", "in/deep/er/c_x4.avif"]


def test_results_of_an_earlier_run_are_no_sources(folder: Path):
    images.write("in/a_x4.png", noise(4, 4, 3))
    assert "in/a_x4_x4.png" not in targets("in", suffix="_x4")
    images.write("in/out/a.png", noise(4, 4, 3))
    assert targets("in", output="in/out").count("in/out/a.png") == 1
    assert "in/out/out/a.png" not in targets("in", output="in/out")


def test_two_sources_of_one_name_get_two_results(folder: Path):
    images.write("in/a.jpg", noise(4, 4, 3))
    images.write("other/a.png", noise(4, 4, 3))
    assert targets("in/a.png", "in/a.jpg", output="out") == ["out/a_png.png", "out/a_jpg.png"]
    assert targets("in/a.png", "other/a.png", output="out") == ["out/a_png.png", "out/a_png-2.png"]


def test_a_single_image_may_have_a_named_file(folder: Path):
    assert targets("in/a.png", output="large.webp") == ["large.webp"]
    assert targets("in/a.png", output="large") == ["large/a.png"]
    for name in ("large.xyz", "large.gif"):
        with pytest.raises(ImageError, match=rf"{name}: cannot write \.\w+: use \.png, \.jpg"):
            targets("in/a.png", output=name)
    Path("v1.5").mkdir()
    assert targets("in/a.png", output="v1.5") == ["v1.5/a.png"]


def test_a_source_is_never_replaced(folder: Path):
    for inputs, output in ((["in/a.png"], "in/a.png"), (["in"], "in"), (["in/a.png", "in/b.jpg"], "in")):
        with pytest.raises(ImageError, match="the result would replace an image"):
            targets(*inputs, output=output, form="same")
    Path("link").symlink_to("in")
    with pytest.raises(ImageError, match="the result would replace an image"):
        targets("in/a.png", output="link")


# Results


def test_a_photo_becomes_a_larger_one_beside_it(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    assert upsr("upscale", "in/a.png", "--model", model) == 0
    assert open_photo("in/a_x4.png").pixels.shape == (24, 28, 3)
    assert re.fullmatch(r"1 upscaled in \d+ s: in/a_x4\.png\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("scale", "end"), [("2", "_x2"), ("2.0", "_x2"), ("1.50", "_x1.5"), ("14x", "_14x"), (None, "_x4")]
)
def test_a_name_tells_the_size_of_its_result(folder: Path, model: Path, scale: str | None, end: str):
    options = ["--scale", scale] if scale else []
    assert upsr("upscale", "in", "--model", model, *options) == 0
    assert {f"a{end}.png", f"b{end}.png", f"deep/er/c{end}.png"} <= below("in")
    assert upsr("upscale", "in/a.png", "--model", model, "--suffix", "_large", *options) == 0
    assert open_photo("in/a_large.png").pixels.shape == open_photo(f"in/a{end}.png").pixels.shape


def test_a_model_that_enlarges_twice_says_so_in_the_name(folder: Path):
    assert upsr("upscale", "in/a.png", "--model", save_model(folder / "model", params(scale=2))) == 0
    assert open_photo("in/a_x2.png").pixels.shape == (12, 14, 3)


@pytest.mark.parametrize(
    ("text", "shape"), [("4", (24, 28)), ("2", (12, 14)), ("1.5", (9, 10)), ("3", (18, 21)), ("14x", (12, 14))]
)
def test_results_have_the_size_that_is_asked_for(folder: Path, model: Path, text: str, shape: tuple[int, int]):
    assert upsr("upscale", "in/a.png", "-o", "large.png", "--model", model, "--scale", text) == 0
    assert open_photo("large.png").pixels.shape[:2] == shape


def test_resizing_is_exact_and_without_fringes(tmp_path: Path):
    image = np.full((8, 8, 4), 255, np.uint8)
    image[:, 4:] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    upscaler = Upscaler(Nearest(), None)  # type: ignore[arg-type]
    job = batch.Job(tmp_path / "a.png", tmp_path / "b.png")
    batch.upscale(upscaler, job, batch.Style(size=Size.parse("2")), seed=0, tile=64)
    result = open_photo(tmp_path / "b.png")
    assert result.alpha is not None and result.pixels.shape == (16, 16, 3)
    assert result.pixels[result.alpha[:, :, 0] > 0].min() >= 254


LONG = [pytest.param("9" * 400, id="long factor"), pytest.param(f"{'9' * 5000}x", id="long width")]


@pytest.mark.parametrize("text", ["0", "-1", "x", "8y", "0x", "800x600", *LONG])
def test_a_size_that_is_none_is_one_line(folder: Path, text: str, capsys: pytest.CaptureFixture[str]):
    assert upsr("upscale", "in/a.png", f"--scale={text}") == 2
    assert f"--scale: {text}: give a factor such as 2 or 1.5, or a width such as 800x" in capsys.readouterr().err


def test_a_size_beyond_the_model_is_one_line(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    assert upsr("upscale", "in/a.png", "--model", model, "--scale", "5") == 2
    assert "in/a.png: 35x30 is more than 4 times its size: ask for less" in capsys.readouterr().err


def test_of_several_frames_the_first_is_taken_where_asked(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    assert upsr("upscale", "a.gif", "--model", model) == 2
    message = "error: a.gif: 2 frames or pages: save one as a file of its own, or give --first-frame\n"
    assert message in capsys.readouterr().err
    assert upsr("upscale", "a.gif", "--model", model, "--first-frame") == 0
    assert open_photo("a_x4.png").pixels.shape == (32, 32, 3)


def test_quality_background_and_metadata_are_chosen(folder: Path, model: Path):
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    image = noise(20, 20, 4)
    image[:, :, 3] = 0
    Image.fromarray(image).save("a.png", exif=exif)
    for options in (["--quality", "10"], ["--quality", "100", "--strip"], ["--background", "#0000ff"]):
        assert upsr("upscale", "a.png", "-o", f"{options[1][-2:]}.jpg", "--model", model, *options) == 0
    assert Path("10.jpg").stat().st_size <= Path("00.jpg").stat().st_size
    assert Image.open("10.jpg").getexif()[0x010F] == "Camera" and 0x010F not in Image.open("00.jpg").getexif()
    assert np.abs(open_photo("ff.jpg").array().astype(int) - (0, 0, 255)).max() <= 3


def test_before_and_after_lie_side_by_side(folder: Path, model: Path):
    assert upsr("upscale", "in/a.png", "-o", "out", "--model", model, "--compare") == 0
    assert below("out") == {"a.png", "a.compare.png", "a.compare.html"}
    assert open_photo("out/a.compare.png").pixels.shape == (24, 28 * 2 + 4, 3)
    page = Path("out/a.compare.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page


def test_a_large_result_lies_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "IN_MEMORY", 1000)
    array = canvas(tmp_path)((40, 30, 3), np.dtype(np.uint8))
    assert isinstance(array, np.memmap) and array.shape == (40, 30, 3)
    array[:] = 7
    assert list(tmp_path.iterdir()) == []  # no name: a kill leaves nothing


# A batch


def test_every_file_of_a_folder_is_accounted_for(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    """200 files: every format and depth, and every fault."""
    suffixes = [".png", ".jpg", ".jpe", ".jfif", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif"]
    fine, faults = [], []
    for number in range(160):
        name = f"fine/{number % 7}/{number:03d}{suffixes[number % 10]}"
        images.write(name, noise(4 + number % 3, 5, 1 + number % 4, dtype=(np.uint8, np.uint16)[number // 80]))
        fine.append(name)
    Path("fine/faults").mkdir()
    for number in range(39):
        name, data = list(DAMAGED.items())[number % len(DAMAGED)]
        path = Path(f"fine/faults/{number:02d} {name}{suffixes[number % 10]}")
        path.write_bytes(data)
        faults.append(path)
    Path(os.fsdecode(b"fine/faults/caf\xe9.png")).write_bytes(Path(fine[0]).read_bytes())
    os.mkfifo("fine/pipe.png")
    Path("fine/notes.txt").write_text("no image")
    assert upsr("upscale", "fine", "-o", "out", "--model", model, "--tile", 32) == 2
    captured = capsys.readouterr()
    assert len(below("out")) == 161
    assert re.match(r"161 upscaled, 39 failed in \d+ s: .*/out\n", captured.out)
    lines = captured.err.splitlines()
    assert len([line for line in lines if line.startswith("error: fine/faults/")]) == 39
    assert lines[-1] == "error: 39 of 200 images could not be upscaled" and "Traceback" not in captured.err


def test_an_interrupted_folder_goes_on(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    Path("out").mkdir()
    Path("out/a.png").write_text("there")
    assert upsr("upscale", "in", "-o", "out", "--model", model, "--skip-existing") == 0
    assert "2 upscaled, 1 there already in" in capsys.readouterr().out
    assert Path("out/a.png").read_text() == "there" and below("out") == {"a.png", "b.png", "deep/er/c.png"}


def test_a_result_that_cannot_be_written_ends_no_batch(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    Path("out/deep").mkdir(parents=True)
    Path("out/deep/er").write_text("a file where a folder should be")
    images.write(f"in/{'n' * 250}.png", noise(4, 4, 3))
    assert upsr("upscale", "in", "-o", "out", "--model", model, "--suffix", "_large") == 2
    captured = capsys.readouterr()
    assert "2 upscaled, 2 failed" in captured.out
    assert "the file name is too long: shorten it" in captured.err and "out/deep/er" in captured.err
    assert below("out") == {"a_large.png", "b_large.png", "deep/er"}


def test_what_is_wrong_with_the_options_is_known_at_once(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Before a model is loaded: there is none."""
    for options, message in (
        (["--tile", "1"], "--tile: 1 is too small: give 16 or more, or auto"),
        (["--seed", "-1"], "--seed: -1 is below 0"),
        (["--steps", "0"], "--steps: 0 is not above 0"),
        (["--quality", "101"], "--quality: 101 is above 100"),
        (["--background", "purpel"], "--background: purpel: give a name such as white, or #rrggbb"),
        (["-o", "large.xyz"], "large.xyz: cannot write .xyz"),
    ):
        assert upsr("upscale", "in/a.png", "--model", "nowhere", *options) == 2
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_finalizer_is_heard_before_the_next_tile():
    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with interruptible() as check:
        ending = Ending()
        check()
        del ending  # Python drops the KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(folder: Path):
    for number in range(40):
        images.write(f"many/{number:02d}.png", noise(40, 40, 3))
    command = [sys.executable, "-m", "upsr", "upscale", "many", "-o", "out", "--model", "atd-48"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a shell's background job ignores it)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not Path("out").is_dir() or len(below("out")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--skip-existing goes on from here" in errors and "Traceback" not in errors
    for name in below("out"):
        assert open_photo(f"out/{name}").pixels.shape == (160, 160, 3)

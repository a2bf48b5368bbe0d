"""A thousand files as they lie about in real folders, through download, crop and pack: each is accounted for."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, settings
from PIL import Image

import pipelines.crop
import pipelines.pack
from upsr import images
from upsr.acquisition.fetch import fetch
from upsr.data.lmdb_store import Reader, pack, verify
from upsr.data.subimages import crop, gradient_energy
from upsr.files import DataError


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(np.sin((c + 1) * x / 9) + np.cos(y / (c + 5)) + 2) * 60 for c in range(channels)], -1).astype(
        np.uint8
    )


def coded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def cmyk() -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture(40, 50)).convert("CMYK").save(data, "JPEG")
    return data.getvalue()


def flipped(data: bytes) -> bytes:
    """One byte in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


PNG, JPEG = coded(".png", picture(40, 50)), coded(".jpg", picture(40, 50))
GOOD = {
    ("rgb", ".png"): PNG,
    ("photo", ".JPG"): JPEG,
    ("webp", ".webp"): coded(".webp", picture(33, 47)),
    ("bitmap", ".bmp"): coded(".bmp", picture(20, 30)),
    ("tiff", ".tif"): coded(".tif", picture(20, 30)),
    ("grey", ".png"): coded(".png", picture(40, 50, 1)),
    ("greyphoto", ".jpeg"): coded(".jpg", picture(40, 50, 1)),
    ("alpha", ".png"): coded(".png", picture(40, 50, 4)),
    ("deep", ".png"): coded(".png", picture(40, 50).astype(np.uint16) * 257),
    ("deepgrey", ".tiff"): coded(".tiff", picture(20, 30, 1).astype(np.uint16) * 257),
    ("cmyk", ".jpg"): cmyk(),
    ("dot", ".png"): coded(".png", picture(1, 1)),
    ("line", ".png"): coded(".png", picture(1, 300)),
    ("panorama", ".jpg"): coded(".jpg", picture(64, 1000)),
    ("tower", ".png"): coded(".png", picture(1000, 40)),
    ("png_named", ".jpg"): PNG,
    ("jpeg_named", ".png"): JPEG,
    ("Übung mit Leerzeichen ", ".png"): PNG,
}
CORRUPT = {
    ("cut", ".png"): PNG[: len(PNG) // 2],
    ("cutphoto", ".jpg"): JPEG[: len(JPEG) // 2],
    ("flipped", ".png"): flipped(PNG),
    ("empty", ".png"): b"",
    ("text_named", ".png"): b"not a picture",
    ("html_named", ".jpg"): b"<html>404</html>",
    ("float", ".tiff"): coded(".tiff", picture(20, 30).astype(np.float32)),
}
OTHER = {
    ("notes", ".txt"): b"hello",
    ("film", ".mp4"): b"\0" * 100,
    ("nosuffix", ""): PNG,
    (".hidden", ".png"): PNG,
}
KINDS = {kind: "picture" for kind in GOOD} | {kind: "corrupt" for kind in CORRUPT} | {kind: "other" for kind in OTHER}


@pytest.fixture
def thousand(tmp_path: Path) -> dict[str, str]:
    """1,000 files of all kinds in turn below `mixed`: name -> what it is."""
    folder, made, kinds = tmp_path / "mixed", {}, list(KINDS)
    folder.mkdir()
    for i in range(1000):
        kind = kinds[i % len(kinds)]
        name = f"{kind[0]}{i:04d}{kind[1]}"
        (folder / name).write_bytes((GOOD | CORRUPT | OTHER)[kind])
        made[name] = KINDS[kind]
    return made


def test_every_one_of_a_thousand_files_is_accounted_for(
    thousand: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    crops = {"size": 64, "step": 48}
    Path("params.yaml").write_text(json.dumps(settings(crop=crops, data={"on_corrupt": "skip"})))
    held = "held.png"
    images.write(Path("mixed", held), picture(48, 48))
    folders = {"train": Path("data/hr"), "holdout": Path("holdout")}
    options = {"reserved": {"holdout": [Path(held).stem]}, "max_side": 64, "scale": 4}
    taken = fetch("folder", "mixed", folders, on_corrupt="skip", **options)
    pipelines.crop.main()
    pipelines.pack.main()

    told = {f: "picture" for f in (p["file"] for p in taken["pictures"] if p["split"] == "train")}
    left_out = [line.split(": ", 1) for line in taken["left_out"]]
    told |= {Path(p).name: "other" if why in ("hidden", "not an image") else "corrupt" for p, why in left_out}
    assert told == thousand

    report = json.loads(Path("data/subimages/report.json").read_text())
    assert set(report["cut"]) == {name for name in told if told[name] == "picture"} and all(report["cut"].values())
    assert report["corrupt"] == report["ignored"] == [] and report["flat"] == 0
    reader = Reader("data/train.lmdb")
    stems = Counter(key.decode().rsplit("_s", 1)[0] for key in reader.keys)
    assert stems == {Path(name).stem: count for name, count in report["cut"].items()}
    assert len(reader) == report["subimages"] == verify("data/train.lmdb")
    assert all(reader.read(i).shape[2] == 3 for i in range(0, len(reader), 97))


NAMES = {
    b"caf\xe9.png": "is not UTF-8",
    b"l" * 251 + b".png": "has more than 240 bytes",
    b"two\nlines.png": "has a line break",
}
"""The longest is as long as a name can be."""


def test_an_odd_file_name_is_renamed_by_download_and_refused_by_crop(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images.write(tmp_path / "in/-good.png", picture(40, 50))
    for name in (*NAMES, b"notes\xff.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(PNG)
    folder, options = tmp_path / "in", {"reserved": {}, "max_side": 64, "scale": 4}
    taken = fetch("folder", folder, {"train": tmp_path / "hr"}, on_corrupt="fail", **options)
    cuts = {"size": 32, "step": 32, "threshold": 0, "min_gradient": 0}
    with pytest.raises(DataError, match=r"3 unreadable: .*caf\\xe9\.png: the file name is not UTF-8: rename it"):
        crop(folder, tmp_path / "subimages", on_corrupt="fail", **cuts)
    report = crop(folder, tmp_path / "subimages", on_corrupt="skip", **cuts)
    assert all(sum(reason in message for message in report["corrupt"]) == 1 for reason in NAMES.values())
    assert len(taken["pictures"]) == 1 + len(NAMES) and (tmp_path / "hr/-good.png").is_file()
    assert json.loads((tmp_path / "hr/manifest.json").read_text()) == taken
    assert json.loads((tmp_path / "subimages/report.json").read_text()) == report
    assert report["cut"] == {"-good.png": report["subimages"]}
    assert taken["left_out"] == [f"{folder}/notes\\xff.txt: not an image"]
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_file_name_can_be_written_and_packed(tmp_path: Path, name: bytes):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name))
    images.write(path, picture(40, 50))
    assert pack(tmp_path / "in", tmp_path / "x.lmdb", "png") == verify(tmp_path / "x.lmdb") == 1
    with pytest.raises(images.ImageError, match="the file name is too long: shorten it"):
        images.write(path.with_name("l" * 252 + ".png"), picture(4, 4))


def test_a_cmyk_photograph_keeps_its_colours(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(cmyk())
    naive = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))  # without the colours of real inks
    found = images.read_rgb(tmp_path / "a.jpg")
    assert all(np.corrcoef(found[:, :, c].flat, naive[:, :, c].flat)[0, 1] > 0.9 for c in range(3))


# Flat crops


def half_flat(folder: Path) -> None:
    image = np.full((64, 128, 3), 90, np.uint8)
    image[:, 64:] = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    images.write(folder / "half.png", image)


def test_flat_crops_are_dropped_on_demand_and_counted(tmp_path: Path):
    half_flat(tmp_path / "in")
    report = crop(tmp_path / "in", tmp_path / "out", size=64, step=64, threshold=0, min_gradient=1, on_corrupt="fail")
    assert (report["flat"], report["cut"]) == (1, {"half.png": 1})
    assert [p.name for p in images.find(tmp_path / "out")] == ["half_s002.png"]
    with pytest.raises(DataError, match=r"crop\.min_gradient"):
        crop(tmp_path / "in", tmp_path / "out", size=64, step=64, threshold=0, min_gradient=1e6, on_corrupt="fail")


def test_gradient_energy_is_the_mean_square_of_differences():
    ramp = np.repeat(np.arange(0, 60, 3, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    assert gradient_energy(ramp) == pytest.approx(9)
    assert gradient_energy(np.full((1, 1, 3), 7, np.uint8)) == 0


# The store


def test_a_window_is_the_same_piece_in_every_encoding(tmp_path: Path):
    half_flat(tmp_path / "in")
    whole = images.read_rgb(tmp_path / "in/half.png")
    for encoding in ("png", "webp", "raw"):
        pack(tmp_path / "in", tmp_path / "x.lmdb", encoding)
        piece = Reader(tmp_path / "x.lmdb").read(0, lambda h, w: (slice(h - 9, h), slice(w - 20, w - 7)))
        assert np.array_equal(piece, whole[55:64, 108:121])


def test_a_store_with_another_byte_is_found_out(tmp_path: Path):
    half_flat(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "x.lmdb", "raw")
    assert verify(tmp_path / "x.lmdb") == 1
    data = bytearray((tmp_path / "x.lmdb/data.mdb").read_bytes())
    data[-5000] ^= 1
    (tmp_path / "x.lmdb/data.mdb").write_bytes(data)
    with pytest.raises(DataError, match="does not match its SHA-256"):
        verify(tmp_path / "x.lmdb")


@pytest.mark.slow
def test_packing_that_was_killed_leaves_no_half_store_and_the_next_starts_clean(tmp_path: Path):
    for i in range(400):
        images.write(tmp_path / f"in/{i:03d}.bmp", picture(100, 100))
    code = "from pathlib import Path; from upsr.data.lmdb_store import pack; pack(Path('in'), Path('x.lmdb'), 'webp')"
    started = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not list(tmp_path.glob(".x.lmdb.*/new/data.mdb")):
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "x.lmdb").exists() and list(tmp_path.glob(".x.lmdb.*"))
    assert pack(tmp_path / "in", tmp_path / "x.lmdb", "raw") == verify(tmp_path / "x.lmdb") == 400
    assert {p.name for p in tmp_path.iterdir()} == {"in", "x.lmdb"}

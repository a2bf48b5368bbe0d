"""From photographs to training samples, on real pictures, a real LMDB and a real loader."""

import hashlib
import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED
from torch.utils.data import DataLoader

import pipelines.download
import pipelines.training
from upsr import images
from upsr.acquisition.fetch import fetch
from upsr.acquisition.sources import SAMPLES
from upsr.config import load_params
from upsr.data.benchmarks import open_benchmark
from upsr.data.datasets import PatchDataset, step_batches
from upsr.data.lmdb_store import FIRST_MAP, Reader, pack, verify
from upsr.data.subimages import crop, positions
from upsr.files import DataError


def picture(height, width, seed=0):
    """Noise on a slope: no two pixels' neighbourhoods are alike."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 150, height * width * 3).reshape(height, width, 3)
    return (slope + rng.integers(100, size=(height, width, 3))).astype(np.uint8)


@pytest.fixture
def album(tmp_path):
    """A user's folder with every kind of picture that turns up in one."""
    folder = tmp_path / "album"
    images.write(folder / "colour.png", picture(70, 90))
    images.write(folder / "photo.jpg", picture(64, 64))
    images.write(folder / "grey.png", picture(50, 60)[:, :, :1])
    images.write(folder / "deep.png", picture(48, 48).astype(np.uint16) * 257)
    images.write(folder / "alpha.png", np.dstack([picture(40, 40), np.full((40, 40), 128, np.uint8)]))
    images.write(folder / "tiny.png", picture(3, 2))
    return folder


def take(tmp_path, holdout=("colour",), validation=("deep",), **changes):
    settings = {
        "source": "folder",
        "folder": tmp_path / "album",
        "folders": folders(tmp_path),
        "reserved": {"holdout": holdout, "validation": validation},
        "max_side": 50,
        "scale": 4,
        "on_corrupt": "fail",
    }
    return fetch(**(settings | changes))


def folders(tmp_path):
    return {"train": tmp_path / "hr", "holdout": tmp_path / "holdout" / "HR", "validation": tmp_path / "validation"}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# download


def test_sample_photographs_come_with_hash_origin_and_licence(tmp_path):
    manifest = take(tmp_path, source="sample", holdout=["astronaut", "china"], validation=["rocket"], max_side=384)
    assert len(manifest["pictures"]) == len(SAMPLES)
    for entry in manifest["pictures"]:
        path = folders(tmp_path)[entry["split"]] / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        assert path.stat().st_size == entry["size"]
        assert images.read_rgb(path).shape[:2] == (entry["height"], entry["width"])
        assert entry["licence"] and entry["origin"]
    assert json.loads((tmp_path / "hr/manifest.json").read_text()) == manifest
    assert {p.name for p in images.find(tmp_path / "holdout/HR")} == {"astronaut.png", "china.png"}
    assert {p.name for p in images.find(tmp_path / "validation")} == {"rocket.png"}
    assert "hubble.jpg" in {p.name for p in images.find(tmp_path / "hr")}


def test_training_pictures_keep_their_bytes_and_held_out_ones_are_shrunk_whole(album, tmp_path):
    take(tmp_path)
    assert (tmp_path / "hr/photo.jpg").read_bytes() == (album / "photo.jpg").read_bytes()
    held = images.read_rgb(tmp_path / "holdout/HR/colour.png")
    whole = images.read_rgb(album / "colour.png")  # 70 × 90, to at most 50 a side, sides a multiple of 4
    assert held.shape == (36, 48, 3)
    assert np.abs(held.mean((0, 1)) - whole.mean((0, 1))).max() < 1
    assert not (tmp_path / "hr/colour.png").exists()


def likeness(a, b):
    """Correlation of two images, both shrunk to 16 × 16 pixels: above 0.8 for two views of one scene."""
    thumbnails = [cv2.resize(images.read_rgb(p), (16, 16), interpolation=cv2.INTER_AREA).ravel() for p in (a, b)]
    return np.corrcoef(thumbnails)[0, 1]


def test_checkpoints_are_chosen_on_images_that_are_neither_trained_on_nor_reported(tmp_path, weights, monkeypatch):
    """The stage `download` with the settings of params.yaml, and the images that a training validates on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/metric_weights").symlink_to(weights)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    pipelines.download.main()
    chosen_on = images.find(pipelines.training.VALIDATION)
    reported = [Path("data/benchmarks/holdout/HR"), *(SHARED / "benchmarks").glob("*/HR")]
    others = [path for folder in (Path("data/hr"), *reported) for path in images.find(folder)]
    assert len(chosen_on) >= load_params().train.validate_pictures
    assert {p.stem for p in chosen_on + others} >= {sample.name for sample in SAMPLES}
    assert not {p.stem for p in chosen_on} & {p.stem for p in others}
    assert max(likeness(a, b) for a in chosen_on for b in others) < 0.8
    assert likeness(*(f"data/hr/motorcycle_{side}.png" for side in ("left", "right"))) > 0.8


def test_taking_again_writes_nothing_and_clears_what_an_earlier_source_left(album, tmp_path):
    take(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in images.find(tmp_path / "hr")}
    take(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in images.find(tmp_path / "hr")} == before
    (album / "grey.png").unlink()
    take(tmp_path, holdout=["photo"])
    assert {p.name for p in images.find(tmp_path / "hr")} == {"alpha.png", "colour.png", "tiny.png"}
    assert {p.name for p in images.find(tmp_path / "holdout/HR")} == {"photo.png"}
    take(tmp_path, holdout=["deep"], validation=["alpha"])
    assert {p.name for p in images.find(tmp_path / "hr")} == {"colour.png", "photo.jpg", "tiny.png"}
    assert {p.name for p in images.find(tmp_path / "validation")} == {"alpha.png"}


@pytest.mark.parametrize("name", ["photo.jpg", "grey.png"])
def test_a_truncated_picture_is_named_and_fatal_or_skipped(album, tmp_path, name):
    truncate(album / name)
    with pytest.raises(DataError, match=rf"1 unreadable: .*{name}.*on_corrupt"):
        take(tmp_path)
    assert len(json.loads((tmp_path / "hr/manifest.json").read_text())["left_out"]) == 1
    manifest = take(tmp_path, on_corrupt="skip")
    assert len(manifest["left_out"]) == 1 and name in manifest["left_out"][0]
    assert not (tmp_path / "hr" / name).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": ["nobody"]}, "data.holdout.*nobody.*choose among alpha"),
        ({"holdout": ["tiny"]}, "data.holdout.*tiny.png has 2x3 pixels.*narrower than 4.*name another image"),
        ({"holdout": ["colour"], "max_side": 4}, "colour.png has 90x70 .*side has at most 4: .*data.holdout_side"),
        ({"validation": ["nobody"]}, "data.validation.*nobody.*choose among alpha"),
        ({"validation": ["tiny"]}, "data.validation.*tiny.png.*narrower than 4"),
        (
            {"holdout": ["alpha", "colour", "grey", "photo", "tiny"]},
            "data.holdout and data.validation.*none .* to train",
        ),
        ({"folder": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_a_wrong_setting_is_named(album, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        take(tmp_path, **changes)


def test_the_users_folder_is_never_written_to(album, tmp_path):
    before = contents(album)
    for split in folders(tmp_path):
        with pytest.raises(DataError, match=r"data\.folder.*move the images"):
            take(tmp_path, folders=folders(tmp_path) | {split: album})
    assert contents(album) == before


@pytest.mark.parametrize("output", ["hr", "holdout/HR", "validation"])
def test_a_folder_that_holds_the_outputs_is_refused(album, tmp_path, output):
    album.rename(tmp_path / "hr")
    for folder in (tmp_path, tmp_path / output / "sub"):
        with pytest.raises(DataError, match=rf"data\.folder: {folder} overlaps .*move the images"):
            take(tmp_path, folder=folder)
    assert len(images.find(tmp_path / "hr")) == 6


ODD = [b"a/photo.png", b"b/photo.PNG", b"b/deeper/other.png", b"caf\xe9.png", b"l" * 251 + b".png", b"two\nlines.png"]


def test_every_image_below_the_folder_is_trained_on_under_a_name_of_its_own(album, tmp_path):
    """In sub-folders, of one name, and with names that DVC cannot hold; `crop` and `pack` take them all."""
    for number, name in enumerate(ODD):
        path = Path(os.fsdecode(os.fsencode(album) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(picture(20, 30, number)))
    manifest = take(tmp_path)
    taken = {path.name: path.read_bytes() for path in images.find(tmp_path / "hr")}
    assert {images.encode_png(picture(20, 30, number)) for number in range(len(ODD))} <= set(taken.values())
    assert len(taken) == len(set(taken.values())) == 4 + len(ODD) and not manifest["left_out"]
    assert {"grey.png", "other.png", "alpha.png"} <= taken.keys() and not {"photo.png", "photo.jpg"} & taken.keys()
    origins = {entry["file"]: entry["origin"] for entry in manifest["pictures"]}
    assert [origins[name] for name in taken if name.startswith("a_photo-")] == [f"{album}/a/photo.png"]
    # the names last
    images.write(album / "c/photo.png", picture(9, 9))
    (album / "b/photo.PNG").unlink()
    take(tmp_path)
    assert {path.name for path in images.find(tmp_path / "hr")} & taken.keys() == taken.keys() - {
        name for name in taken if name.startswith("b_photo-")
    }
    # the stages after it
    cuts = {"size": 32, "step": 32, "threshold": 0, "min_gradient": 0, "on_corrupt": "fail"}
    report = crop(tmp_path / "hr", tmp_path / "sub", **cuts)
    assert len(report["cut"]) == 4 + len(ODD)
    assert pack(tmp_path / "sub", tmp_path / "x.lmdb", "png") == report["subimages"]


def test_one_of_several_images_of_a_name_is_held_out_by_the_name_that_the_error_gives(album, tmp_path):
    images.write(album / "a/photo.png", picture(20, 20))
    with pytest.raises(DataError, match=r"data\.holdout: no image is named photo: choose among ") as error:
        take(tmp_path, holdout=["photo"])
    (name,) = re.findall(rf"(\S+) \({album}/a/photo\.png\)", str(error.value))
    take(tmp_path, holdout=[name])
    assert np.array_equal(images.read_rgb(tmp_path / f"holdout/HR/{name}.png"), picture(20, 20))
    assert len([path for path in images.find(tmp_path / "hr") if "photo" in path.name]) == 1


def test_a_name_that_another_image_would_get_is_refused(album, tmp_path):
    """As where someone copied an image out of an earlier data/hr."""
    images.write(album / "a/photo.png", picture(20, 20))
    take(tmp_path)
    (copied,) = (tmp_path / "hr").glob("a_photo-*.png")
    images.write(album / copied.name, picture(30, 30))
    with pytest.raises(DataError, match=rf"a/photo\.png: its name would be {copied.stem}, .*rename one"):
        take(tmp_path)


def test_a_copy_of_a_held_out_image_is_not_trained_on_and_named(album, tmp_path, caplog):
    (album / "again.png").write_bytes((album / "colour.png").read_bytes())
    images.write(album / "sub/converted.bmp", images.read(album / "colour.png"))
    images.write(album / "sub/shallow.png", images.read_rgb(album / "deep.png"))  # of 16 bits
    left_out = [
        f"{album}/again.png: has the pixels of {album}/colour.png, which data.holdout names",
        f"{album}/sub/converted.bmp: has the pixels of {album}/colour.png, which data.holdout names",
        f"{album}/sub/shallow.png: has the pixels of {album}/deep.png, which data.validation names",
    ]
    assert take(tmp_path)["left_out"] == left_out
    assert [record.getMessage() for record in caplog.records] == [f"left out: {line}" for line in left_out]
    assert {path.stem for path in images.find(tmp_path / "hr")} == {"photo", "grey", "alpha", "tiny"}


def test_an_image_of_the_same_bytes_in_another_shape_is_no_copy(album, tmp_path):
    images.write(album / "flat.png", np.full((40, 60, 3), 9, np.uint8))
    images.write(album / "upright.png", np.full((60, 40, 3), 9, np.uint8))
    assert not take(tmp_path, holdout=["flat"])["left_out"] and (tmp_path / "hr/upright.png").is_file()


def test_checkpoints_are_not_chosen_on_a_copy_of_a_reported_image(album, tmp_path):
    images.write(album / "copy.bmp", images.read(album / "colour.png"))
    with pytest.raises(DataError, match=r"data\.validation: copy.* has the pixels of colour.*data\.holdout.*another"):
        take(tmp_path, validation=["copy"])


@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
def test_a_held_out_image_that_cannot_be_read_is_fatal_and_named(album, tmp_path, on_corrupt):
    truncate(album / "photo.jpg")
    with pytest.raises(
        DataError, match=r"data\.validation: .*photo\.jpg: .*replace or remove it, or name another image"
    ):
        take(tmp_path, validation=["photo"], on_corrupt=on_corrupt)


def test_every_file_that_is_left_out_is_listed_with_the_reason(album, tmp_path):
    (album / "sub/.thumbnails").mkdir(parents=True)
    for name in ("notes.txt", "sub/film.mp4", "sub/.thumbnails/a.png", ".hidden.png"):
        (album / name).write_bytes(b"hello")
    (album / "sub/link").symlink_to(tmp_path)
    (album / "lost.png").symlink_to("nowhere.png")
    os.mkfifo(album / "pipe.png")
    truncate(album / "grey.png")
    left_out = dict(line.split(": ", 1) for line in take(tmp_path, on_corrupt="skip")["left_out"])
    reasons = {
        ".hidden.png": "hidden",
        "sub/.thumbnails": "hidden",
        "sub/link": "a link to a folder",
        "notes.txt": "not an image",
        "sub/film.mp4": "not an image",
        "pipe.png": "not an image",
        "grey.png": "truncated image: replace or remove it",
        "lost.png": "cannot be read (No such file or directory): replace or remove it",
    }
    assert left_out.keys() == {f"{album}/{name}" for name in reasons}
    assert all(reason in left_out[f"{album}/{name}"] for name, reason in reasons.items() if name != "grey.png")


# crop


def cut(tmp_path, **changes):
    settings = {"size": 32, "step": 16, "threshold": 0, "min_gradient": 0, "on_corrupt": "fail"}
    return crop(tmp_path / "album", tmp_path / "sub", **(settings | changes))


@pytest.mark.parametrize("length", [480, 481, 719, 720, 1000, 2040])
@pytest.mark.parametrize("threshold", [0, 100])
def test_positions_are_basicsr_s(length, threshold):
    expected = np.arange(0, length - 480 + 1, 240)
    if length - (expected[-1] + 480) > threshold:
        expected = np.append(expected, length - 480)
    assert positions(length, 480, 240, threshold) == expected.tolist()


def test_sub_images_are_the_picture_and_cover_it(album, tmp_path):
    report = cut(tmp_path)
    whole = images.read_rgb(album / "colour.png")
    places = [(y, x) for y in (0, 16, 32, 38) for x in (0, 16, 32, 48, 58)]
    for number, (y, x) in enumerate(places, start=1):
        part = images.read_rgb(tmp_path / f"sub/colour_s{number:03d}.png")
        assert np.array_equal(part, whole[y : y + 32, x : x + 32])
    assert not (tmp_path / f"sub/colour_s{len(places) + 1:03d}.png").exists()
    assert report == json.loads((tmp_path / "sub/report.json").read_text())
    assert len(report["cut"]) == 6 and report["subimages"] == len(images.find(tmp_path / "sub"))


def test_a_picture_smaller_than_the_crop_is_kept_whole(album, tmp_path):
    assert cut(tmp_path)["whole"] == 1
    assert np.array_equal(images.read_rgb(tmp_path / "sub/tiny_s001.png"), images.read_rgb(album / "tiny.png"))


def test_cropping_again_replaces_the_folder_and_a_failure_leaves_it(album, tmp_path):
    cut(tmp_path, step=8)
    cut(tmp_path)
    first = contents(tmp_path / "sub")
    cut(tmp_path)
    assert contents(tmp_path / "sub") == first
    truncate(album / "photo.jpg")
    with pytest.raises(DataError, match=r"photo\.jpg"):
        cut(tmp_path)
    assert contents(tmp_path / "sub") == first
    assert {p.name for p in tmp_path.iterdir()} == {"album", "sub"}


def test_a_corrupt_picture_is_skipped_and_counted(album, tmp_path):
    truncate(album / "photo.jpg")
    report = cut(tmp_path, on_corrupt="skip")
    assert len(report["cut"]) == 5 and "photo.jpg" in report["corrupt"][0]


# pack


@pytest.fixture
def store(tmp_path):
    """An LMDB of 12 pictures, one of them smaller than the patches below."""
    for i in range(11):
        images.write(tmp_path / f"few/p{i}_s001.png", picture(40, 48, seed=i))
    images.write(tmp_path / "few/small_s001.png", picture(20, 40, seed=11))
    pack(tmp_path / "few", tmp_path / "few.lmdb", "png")
    return tmp_path / "few.lmdb"


@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
def test_every_encoding_gives_the_pixels_back(album, tmp_path, encoding):
    assert pack(album, tmp_path / "x.lmdb", encoding) == 6
    reader = Reader(tmp_path / "x.lmdb")
    assert [key.decode() for key in reader.keys] == sorted(p.stem for p in images.find(album))
    for index, path in enumerate(images.find(album)):
        assert np.array_equal(reader.read(index), images.read_rgb(path))


def test_basicsr_reads_the_store(store, tmp_path):
    """As its `paths_from_lmdb` and `LmdbBackend` do: names up to the dot from meta_info.txt, key -> bytes -> BGR."""
    lines = (store / "meta_info.txt").read_text().splitlines()
    with lmdb.open(str(store), readonly=True, lock=False, readahead=False) as env, env.begin(write=False) as txn:
        assert len(lines) == env.stat()["entries"] == 12
        for line in lines:
            file, shape, level = line.split(" ")
            bgr = cv2.imdecode(np.frombuffer(txn.get(file.split(".")[0].encode("ascii")), np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(bgr[:, :, ::-1], images.read_rgb(tmp_path / "few" / file))
            assert shape == "({},{},{})".format(*bgr.shape) and level == "1"


def test_the_map_grows_and_the_store_is_compact_and_reproducible(tmp_path):
    for i in range(70):
        images.write(tmp_path / f"many/{i}.bmp", picture(128, 128, seed=i))
    pack(tmp_path / "many", tmp_path / "a.lmdb", "raw")
    pack(tmp_path / "many", tmp_path / "b.lmdb", "raw")
    pixels = 70 * 128 * 128 * 3
    assert 3 * FIRST_MAP < pixels < (tmp_path / "a.lmdb/data.mdb").stat().st_size < 1.1 * pixels
    assert set(contents(tmp_path / "a.lmdb")) == {"data.mdb", "meta_info.txt", "sha256"}
    assert contents(tmp_path / "a.lmdb") == contents(tmp_path / "b.lmdb")


def test_a_failed_pack_leaves_the_last_good_store(store, tmp_path):
    before = contents(store)
    truncate(tmp_path / "few/p3_s001.png")
    with pytest.raises(images.ImageError, match="p3_s001"):
        pack(tmp_path / "few", store, "png")
    assert contents(store) == before


def test_readers_share_the_store_and_travel(store):
    one, other = Reader(store), Reader(store)
    sent = pickle.loads(pickle.dumps(one))
    assert np.array_equal(one.read(3), other.read(3)) and np.array_equal(one.read(3), sent.read(3))
    assert not (store / "lock.mdb").exists()


def test_a_store_that_cannot_be_read_ends_in_one_line(store, tmp_path):
    with pytest.raises(DataError, match="no such LMDB: run the `pack` stage"):
        Reader(tmp_path / "nowhere")
    truncate(store / "data.mdb")
    with pytest.raises(DataError, match="truncated: run the `pack` stage again"):
        Reader(store)
    (store / "data.mdb").write_bytes(b"junk")
    with pytest.raises(DataError, match="not a readable LMDB"):
        Reader(store)
    with pytest.raises(DataError, match="no images to pack"):
        pack(store, tmp_path / "y.lmdb", "png")


# loader


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_a_store_without_a_digest_is_verified_by_decoding(album: Path, tmp_path: Path, encoding: str):
    pack(album, tmp_path / "x.lmdb", encoding)
    (tmp_path / "x.lmdb/sha256").unlink()  # as BasicSR's stores are
    assert verify(tmp_path / "x.lmdb") == 6
    reader = Reader(tmp_path / "x.lmdb")
    with reader._environment().begin() as transaction:
        value = transaction.get(reader.keys[0])
    for i, damaged in enumerate((value[:9], value[:-5])):
        with lmdb.open(str(tmp_path / f"{i}.lmdb"), map_size=2**20) as env, env.begin(write=True) as transaction:
            transaction.put(b"cut", damaged)
        with pytest.raises(images.ImageError, match=rf"{i}\.lmdb: cut: "):
            verify(tmp_path / f"{i}.lmdb")


@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
def test_a_damaged_store_is_one_line(album: Path, tmp_path: Path, encoding: str):
    pack(album, tmp_path / "x.lmdb", encoding)
    whole = (tmp_path / "x.lmdb/data.mdb").read_bytes()
    for page in range(2 * 4096, len(whole), 4096):  # the first two say where the others are
        (tmp_path / str(page)).mkdir()
        (tmp_path / str(page) / "data.mdb").write_bytes(whole[:page] + b"\x55" * 4096 + whole[page + 4096 :])
        with suppress(DataError, images.ImageError):  # pixels of `raw` and an unused page may be anything
            verify(tmp_path / str(page))


def test_a_foreign_store_needs_neither_meta_info_nor_readable_keys(album: Path, tmp_path: Path):
    value = images.encode_png(picture(20, 20))
    with lmdb.open(str(tmp_path / "x.lmdb"), map_size=2**20) as env, env.begin(write=True) as transaction:
        transaction.put(b"caf\xe9", value)
    assert (tmp_path / "x.lmdb/lock.mdb").exists()
    assert verify(tmp_path / "x.lmdb") == 1
    with lmdb.open(str(tmp_path / "y.lmdb"), map_size=2**20) as env, env.begin(write=True) as transaction:
        transaction.put(b"\xff", b"")
    with pytest.raises(images.ImageError, match=r"y\.lmdb: .*: not a readable"):
        verify(tmp_path / "y.lmdb")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(store, workers):
    dataset = PatchDataset(store, patch=32, seed=7)
    alone = torch.cat([torch.stack([dataset[i] for i in batch]) for batch in step_batches(2, 8, 4, 2)])
    loader = DataLoader(dataset, batch_sampler=step_batches(2, 8, 4, 2), num_workers=workers)
    assert torch.equal(torch.cat(list(loader)), alone)
    assert alone.dtype == torch.uint8 and alone.shape == (24, 3, 32, 32)


def test_a_sample_depends_on_its_number_and_the_seed_alone(store):
    one, again, other = (PatchDataset(store, patch=16, seed=seed) for seed in (0, 0, 1))
    forwards = [one[i] for i in range(30)]
    backwards = [again[i] for i in reversed(range(30))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not any(torch.equal(one[i], other[i]) for i in range(30))
    assert not any(torch.equal(one[i], one[i + 12]) for i in range(12))


def test_every_epoch_shows_every_picture_once_in_another_order(tmp_path):
    for i in range(20):
        images.write(tmp_path / f"flat/{i}.png", np.full((8, 8, 3), i, np.uint8))
    pack(tmp_path / "flat", tmp_path / "flat.lmdb", "raw")
    dataset = PatchDataset(tmp_path / "flat.lmdb", patch=8, seed=0)
    epochs = [[int(dataset[i].max()) for i in range(start, start + 20)] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_patch_is_a_turned_piece_of_the_picture_and_every_turn_occurs(tmp_path):
    whole = picture(9, 9)
    images.write(tmp_path / "one/a.png", whole)
    pack(tmp_path / "one", tmp_path / "one.lmdb", "png")
    dataset = PatchDataset(tmp_path / "one.lmdb", patch=9, seed=0)
    turns = {np.rot90(side, k).tobytes() for side in (whole, whole.transpose(1, 0, 2)) for k in range(4)}
    assert {dataset[i].permute(1, 2, 0).numpy().tobytes() for i in range(100)} == turns


def test_a_picture_smaller_than_the_patch_is_continued_by_reflection(tmp_path):
    images.write(tmp_path / "one/a.png", picture(3, 2))
    pack(tmp_path / "one", tmp_path / "one.lmdb", "png")
    patch = PatchDataset(tmp_path / "one.lmdb", patch=16, seed=0)[0].numpy()
    assert patch.shape == (3, 16, 16)
    assert set(map(tuple, patch.reshape(3, -1).T)) == set(map(tuple, picture(3, 2).reshape(-1, 3)))


def test_steps_own_their_samples_whatever_the_processes_and_micro_batches():
    for world, micro in ((1, 8), (1, 2), (2, 4), (4, 1)):
        ranks = [list(step_batches(3, 5, 8, micro, rank, world)) for rank in range(world)]
        assert all(len(r) == len(step_batches(3, 5, 8, micro, 0, world)) for r in ranks)
        each = len(ranks[0]) // 2
        for step in (0, 1):
            own = [i for rank in ranks for batch in rank[step * each : (step + 1) * each] for i in batch]
            assert own == list(range((3 + step) * 8, (4 + step) * 8))
        assert all(len(batch) == micro for rank in ranks for batch in rank)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(DataError, match=r"batch 4 .* micro_batch 2 × 3 processes"):
        step_batches(0, 1, 4, 2, world=3)


# benchmarks


@pytest.fixture
def benchmark_folder(tmp_path):
    for name in ("b", "a"):
        images.write(tmp_path / f"Two/HR/{name}.png", picture(16, 16))
        images.write(tmp_path / f"Two/LRx4/{name}.png", picture(4, 4))
    return tmp_path / "Two"


def test_a_benchmark_pairs_by_name(benchmark_folder):
    opened = open_benchmark(benchmark_folder, 4)
    assert (opened.name, opened.scale, [p.name for p in opened.pairs]) == ("Two", 4, ["a", "b"])
    assert opened.pairs[0].lr == benchmark_folder / "LRx4/a.png"
    assert opened.pairs[0].hr == benchmark_folder / "HR/a.png"


def test_a_linked_benchmark_has_the_name_of_the_link(benchmark_folder, tmp_path):
    (tmp_path / "Set5").symlink_to(benchmark_folder)
    for path in (tmp_path / "Set5", tmp_path / "Set5/HR/.."):
        assert open_benchmark(path, 4).name == "Set5"


def test_the_digest_follows_names_and_contents(benchmark_folder, tmp_path):
    first = open_benchmark(benchmark_folder, 4).digest
    moved = benchmark_folder.rename(tmp_path / "Moved")
    assert open_benchmark(moved, 4).digest == first
    images.write(moved / "LRx4/a.png", picture(4, 4, seed=9))
    changed = open_benchmark(moved, 4).digest
    for side in ("HR", "LRx4"):
        (moved / side / "a.png").rename(moved / side / "c.png")
    assert len({first, changed, open_benchmark(moved, 4).digest}) == 3


def test_pictures_without_a_reference(benchmark_folder):
    flat = open_benchmark(benchmark_folder / "LRx4", 4)
    assert [p.hr for p in flat.pairs] == [None, None]
    for path in images.find(benchmark_folder / "HR"):
        path.unlink()
    os.rmdir(benchmark_folder / "HR")
    assert [p.hr for p in open_benchmark(benchmark_folder, 4).pairs] == [None, None]


def test_a_benchmark_that_is_not_whole_is_refused(benchmark_folder, tmp_path):
    with pytest.raises(DataError, match=r"LRx2: no such folder"):
        open_benchmark(benchmark_folder, 2)
    (benchmark_folder / "LRx4/a.png").unlink()
    with pytest.raises(DataError, match=r"no LR image of a"):
        open_benchmark(benchmark_folder, 4)
    (benchmark_folder / "HR/a.png").unlink()
    (benchmark_folder / "HR/b.png").unlink()
    with pytest.raises(DataError, match=r"no HR image of b"):
        open_benchmark(benchmark_folder, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without images"):
        open_benchmark(tmp_path / "empty", 4)


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_the_shared_benchmarks_open(name):
    folder = Path(__file__).parents[2] / "shared" / "benchmarks" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    assert len(open_benchmark(folder, 4).pairs) == int(name.removeprefix("Set"))


# a process of its own


def test_a_reader_opened_before_a_fork_reads_after_it(store):
    reader = Reader(store)
    reader.read(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.read(1), Reader(store).read(1)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(reader.read(1), Reader(store).read(1))

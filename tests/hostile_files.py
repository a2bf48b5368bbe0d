"""Hostile input files, made by a seed: the part `files` of tests/drill.py. hostile_entries.py opens them."""

import copy
import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
import yaml
from conftest import SHARED, params, save_model, settings
from safetensors.torch import load_file, save_file

from pipelines import nightly, train_atd
from upsr.data.lmdb_store import pack
from upsr.pretrained import FILE

COUNTS = {
    "weights": 50, "pickles": 24, "states": 16, "archives": 30, "images": 34, "yaml": 20, "json": 14, "lmdb": 12,
}  # fmt: skip
STATE = train_atd.FOLDER / "state-00000003.pt"
HOSTILE: list[Any] = [
    200_000, 100_000, 10**18, 2**63, 0, -1, -(10**9), 1e308, math.nan, math.inf, True, None, "x", "x" * 3000, [], {},
    [200_000] * 3, [[[]]], {"a": 1},
]  # fmt: skip


class Payload:
    """A pickle of this creates the canary where it is loaded without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Maker:
    """Makes the files of a kind: each method gives (name, bytes) without end, the same for the same seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.canary = folder / "canary"

    def weights(self) -> Iterator[tuple[str, bytes]]:
        good = (save_model(self.folder / "base", params()) / FILE).read_bytes()
        size = int.from_bytes(good[:8], "little")
        header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
        plain = json.loads(header["__metadata__"]["upsr"])
        names = [name for name in header if name != "__metadata__"]

        def file(header: object, body: bytes = body) -> bytes:
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + body

        def told(values: object) -> bytes:
            text = values if isinstance(values, str) else json.dumps(values)
            return file(header | {"__metadata__": {"upsr": text}})

        for section, key, value in [
            ("atd", "dim", 200_000), ("atd", "groups", 100_000), ("atd", "tokens", 10**9), ("atd", "window", 10**6),
            ("unet", "dim", 200_000), ("unet", "channel_mult", [1] * 50), ("unet", "swin_depth", 100_000),
            ("unet", "lr_size", 10**6), ("diffusion", "steps", 10**9), ("uncertainty", "variant", "none"),
        ]:  # fmt: skip
            yield f"{section}-{key}.safetensors", told(plain | {section: plain[section] | {key: value}})
        for text in ("[" * 100_000, "[]", "3", "null", "{}", '{"scale": 1e999}', '{"a":' * 50_000):
            yield "settings.safetensors", told(text)
        for bare in (b"[" * 100_000, b'{"a":' * 50_000, b"{}", b"", b'"\xff"'):
            yield "header.safetensors", file(bare)
        yield "length.safetensors", struct.pack("<Q", 2**63 - 1) + good[8:]
        while True:
            match self.random.randrange(6):
                case 0:
                    yield "leaf.safetensors", told(self.mutated(plain))
                case 1:  # a tensor of another shape, type or place
                    name, (key, value) = self.random.choice(names), self.random.choice(
                        [("shape", [200_000, 200_000]), ("shape", [1, -1]), ("dtype", "F64"), ("dtype", "BOOL"),
                         ("data_offsets", [-4, 4]), ("data_offsets", [0, 2**62]), ("shape", [])]
                    )  # fmt: skip
                    yield "tensor.safetensors", file(header | {name: header[name] | {key: value}})
                case 2:  # the right number of values in the wrong shape
                    name = self.random.choice([n for n in names if len(header[n]["shape"]) > 1])
                    shape = [*reversed(header[name]["shape"]), 1]
                    yield "reshaped.safetensors", file(header | {name: header[name] | {"shape": shape}})
                case 3:  # one part or one tensor is missing
                    tensors = load_file(self.folder / "base" / FILE)
                    lost = self.random.choice(["atd.", "unet.", self.random.choice(names)])
                    kept = {k: v for k, v in tensors.items() if not k.startswith(lost)}
                    save_file(kept, self.folder / "part", metadata={"upsr": json.dumps(plain)})
                    yield "missing.safetensors", (self.folder / "part").read_bytes()
                case 4:
                    yield "nan.safetensors", file(header, b"\xff" * len(body))
                case _:
                    yield "damaged.safetensors", self.damaged(good)

    def pickles(self) -> Iterator[tuple[str, bytes]]:
        tensors = load_file(save_model(self.folder / "base", params()) / FILE)
        atd, unet = (
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)} for part in ("atd.", "unet.")
        )
        torch.save(atd, self.folder / "good.pth")
        wide = "layers.0.residual_group.layers.0.attn_atd.wq.weight"
        huge = torch.zeros(1).expand(8, 200_000)  # one value on the disk
        raw = pickle.dumps({"params_ema": Payload(self.canary)}, protocol=2)
        old = saved(Payload(self.canary), _use_new_zipfile_serialization=False)
        for code in (raw, old, saved({"params_ema": atd | {"x": Payload(self.canary)}})):
            yield from [("code-weights.pth", code)] * 2  # one for each command
        yield "module.pth", saved(torch.nn.Linear(2, 2))
        yield "wide.pth", saved(atd | {wide: huge})
        bias = {k: torch.zeros(1).expand(9_999_999, 2) for k in atd if k.endswith("bias_table")}
        yield "window.pth", saved(atd | bias)
        yield "groups.pth", saved(atd | {f"layers.{i}.conv.weight": huge[:1, :1] for i in range(100_000)})
        yield "infinite.pth", saved({"params": {k: v * math.inf for k, v in atd.items()}})
        yield "keys.pth", saved({"params": {1: huge, None: huge}})
        yield "sparse.pth", saved(atd | {wide: torch.zeros(8, 16).to_sparse()})
        yield "empty.pth", b""
        yield "list.pth", saved([[[]]] * 1000)
        yield "deep.pth", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
        while True:
            for name, state in (("atd", atd), ("unet", unet)):
                key, side = self.random.choice(list(state)), self.random.choice([1, 7, 100_000])
                shape = torch.zeros(1).expand([side] * state[key].dim())
                yield f"{name}-shape.pth", saved({"params_ema": state | {key: shape}})
                yield f"{name}-damaged.pth", self.damaged(saved({"params": state}))

    def states(self) -> Iterator[tuple[str, bytes]]:
        p = params()
        train_atd.train_atd(p, train_atd.own_recipe(p.train_atd), p.scale, train_atd.FOLDER, None)
        for path in sorted(train_atd.FOLDER.glob("state-*"))[1:]:
            path.unlink()  # the last; STATE is the one before it
        shutil.copytree(train_atd.FOLDER, self.folder / "unfinished", dirs_exist_ok=True)
        good = STATE.read_bytes()
        state = torch.load(io.BytesIO(good), weights_only=True)
        yield "code", saved(state | {"network": Payload(self.canary)})
        yield "code", pickle.dumps(Payload(self.canary))
        yield "cut", good[: len(good) // 2]
        yield "empty", b""
        yield "identity", saved({"identity": state["identity"]})
        yield "no-identity", saved({k: v for k, v in state.items() if k != "identity"})
        yield "reshaped", saved(state | {"network": {k: v[..., :1] for k, v in state["network"].items()}})
        yield "pools", saved(state | {"pools": [{k: v[:0] for k, v in pool.items()} for pool in state["pools"]]})
        while True:
            key = self.random.choice([k for k in state if k != "identity"])
            yield f"{key}", saved(state | {key: self.random.choice(HOSTILE)})

    def archives(self) -> Iterator[tuple[str, bytes]]:
        png = image(".png")
        good = {"hr/a.png": png, "hr/b.png": png}
        bomb = {"hr/a.png": bytes(100 << 20), "hr/b.png": png}
        for name in ("../../escaped.png", f"{self.folder}/escaped.png", "hr/..\\escaped.png", "hr/\0.png", "hr/.png",
                     f"hr/{'x' * 300}.png"):  # fmt: skip
            yield "path.zip", zipped({"hr/a.png": png, name: png})
            yield "path.tar", tar({"hr/a.png": png, name: png})
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            yield "link.tar", tar(good, {"hr/c.png": kind, "hr/escaped.png": kind})
        yield "bomb.zip", zipped(bomb)
        yield "bomb.tar", tar(bomb, mode="w:gz")
        yield "twice.zip", zipped({"hr/a.png": png, "lr/a.png": png})
        yield "empty.zip", b""
        stored = zipped(good, zipfile.ZIP_STORED)
        yield "crc.zip", stored.replace(png[40:60], bytes(20))
        for offset, value in ((6, 1), (8, 99)):  # the flag of an encrypted member; an unknown method
            data = bytearray(stored)
            for magic, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
                data[data.index(magic) + offset + shift] = value
            yield f"{'encrypted' if value == 1 else 'method'}.zip", bytes(data)
        while True:
            mode = self.random.choice(["w", "w:gz", "w:bz2", "w:xz"])
            yield "damaged.tar", self.damaged(tar(good, mode=mode))
            yield "damaged.zip", self.damaged(zipped(good))

    def images(self) -> Iterator[tuple[str, bytes]]:
        side = 100_000
        png, bmp, jpeg = bytearray(image(".png")), bytearray(image(".bmp")), bytearray(image(".jpg"))
        png[16:24] = struct.pack(">II", side, side)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        bmp[18:26] = struct.pack("<ii", side, side)
        start = jpeg.index(b"\xff\xc0")
        jpeg[start + 5 : start + 9] = struct.pack(">HH", 65_500, 65_500)
        tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, 100)]
        tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
        tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(104)
        webp = bytearray(image(".webp"))
        large = (side - 1).to_bytes(3, "little") * 2
        extended = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + large + bytes(webp[12:])
        yield "bomb.png", bytes(png)
        yield "bomb.bmp", bytes(bmp)
        yield "bomb.jpg", bytes(jpeg)
        yield "bomb.tif", tiff
        yield "bomb.webp", b"RIFF" + struct.pack("<I", len(extended)) + extended
        for name in ("fifo.png", "fifo.jpg", "folder.png", "loop.png"):
            yield name, b""
        yield "empty.png", b""
        yield "empty.tif", b""
        for height, width in ((1, 1), (1, 40), (40, 1)):
            yield "thin.png", image(".png", height, width)
        real = sorted(p for p in (SHARED / "cases").glob("*") if p.suffix in (".png", ".jpg", ".webp"))
        while True:
            suffix = self.random.choice([".png", ".jpg", ".bmp", ".tif", ".webp"])
            yield f"damaged{suffix}", self.damaged(image(suffix))
            if real:
                path = self.random.choice(real)
                yield path.name, self.damaged(path.read_bytes())

    def yaml(self) -> Iterator[tuple[str, bytes]]:
        bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
        bomb += "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
        touch = f"touch {self.canary}"
        text = yaml.safe_dump(settings())
        for content in (
            bomb, text.replace("seed: 0", f"{bomb}seed: *i"), "[" * 100_000, "{a: " * 5_000, "a: &a [*a]", "&a {b: *a}",
            f"seed: !!python/object/apply:os.system ['{touch}']", f"!!python/object/new:os.system ['{touch}']",
            "seed: !!python/name:os.system", "seed: !!binary x", "seed: 2024-99-99", "", "- 1", "seed: \0", "a: b: c",
            text.replace("seed: 0", f"seed: {'9' * 5000}"), text.replace("seed: 0", "? [a]\n: 1"),
        ):  # fmt: skip
            yield "params.yaml", content.encode()
        yield "params.yaml", b"\xff\xfe seed: \x80"
        while True:
            yield "params.yaml", yaml.safe_dump(self.mutated(settings())).encode()

    def json(self) -> Iterator[tuple[str, bytes]]:
        nightly.begin(params())  # MLflow takes long to make its store
        for name in ("manifest.json", "2020-01-01.json"):
            for text in ("[" * 100_000, '{"a":' * 50_000, "9" * 5000, '{"x.zip": 1e999}', "[[1, 2]]", "3", "null"):
                yield name, text.encode()
        while True:
            yield "manifest.json", json.dumps({"lr": self.random.choice(HOSTILE)}).encode()
            yield "2020-01-01.json", json.dumps({"name": self.random.choice(HOSTILE), "values": {}}).encode()

    def lmdb(self) -> Iterator[tuple[str, bytes]]:
        for i in range(3):
            (self.folder / "in").mkdir(exist_ok=True)
            (self.folder / "in" / f"{i}.png").write_bytes(image(".png"))
        pack(self.folder / "in", self.folder / "base", "raw")
        good = (self.folder / "base" / "data.mdb").read_bytes()
        for size in (0, 100, 4096, 8192, len(good) // 2 // 4096 * 4096, len(good) - 4096, len(good) - 1):
            yield "cut", good[:size]
        yield "foreign", image(".png")
        for value in (b"RGB8", b"RGB8" + struct.pack("<II", 200_000, 200_000), b"RGB8" + bytes(8), b"\x89PNG", b""):
            shutil.rmtree(self.folder / "short", ignore_errors=True)
            with lmdb.open(str(self.folder / "short"), lock=False) as env, env.begin(write=True) as transaction:
                transaction.put(b"a", value)
            yield "short", (self.folder / "short" / "data.mdb").read_bytes()
        while True:
            yield "damaged", self.damaged(good)

    def mutated(self, values: dict[str, Any]) -> dict[str, Any]:
        """Nested settings with a hostile value in one place."""
        values = copy.deepcopy(values)
        node = values
        while (
            isinstance(node[key := self.random.choice(list(node))], dict) and self.random.random() < 0.9 and node[key]
        ):
            node = node[key]
        node[key] = self.random.choice(HOSTILE)
        return values

    def damaged(self, data: bytes) -> bytes:
        """A truncated copy, or one with up to eight other bytes, near the start or anywhere."""
        if self.random.random() < 0.3:
            return data[: self.random.randrange(len(data))]
        copied = bytearray(data)
        skew = self.random.choice([1, 4])
        for _ in range(self.random.randint(1, 8)):
            copied[int(len(data) * self.random.random() ** skew)] = self.random.randrange(256)
        return bytes(copied)


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def image(suffix: str, height: int = 12, width: int = 16) -> bytes:
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))[1].tobytes()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar(members: dict[str, bytes], links: dict[str, bytes] | None = None, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("\0", "%00"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()

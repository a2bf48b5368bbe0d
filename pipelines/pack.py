"""Stage `pack`: packs the sub-images of data/subimages into the LMDB data/train.lmdb."""

from pathlib import Path

from pipelines.stage import run
from upsr.config import load_params
from upsr.data.lmdb_store import pack


def main() -> None:
    params = load_params()
    count = pack(Path("data/subimages"), Path("data/train.lmdb"), params.pack.encoding)
    print(f"pack: {count} images as {params.pack.encoding}", flush=True)


if __name__ == "__main__":
    run(main)

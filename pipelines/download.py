"""Stage `download`: photographs to train on, the held-out benchmark, and the weights of the metrics."""

import zlib
from pathlib import Path

from tqdm import tqdm

from pipelines.stage import run
from upsr import images
from upsr.config import Params, load_params
from upsr.data import metric_weights, whole_folder
from upsr.data.download import fetch
from upsr.degradation.second_order import build_degradation

HOLDOUT = Path("data/benchmarks/holdout")


def degrade_holdout(params: Params) -> None:
    """Makes the LR side of the benchmark: one fixed degradation per picture, keyed by its name.

    It does not depend on `seed`, so that trainings of several seeds are measured on the same pictures.
    """
    degrade = build_degradation(params.degradation, params.scale)
    with whole_folder(HOLDOUT / f"LRx{params.scale}") as folder:
        for path in tqdm(images.find(HOLDOUT / "HR"), desc="degrade", unit="picture", disable=None):
            lr = degrade(images.to_tensor(images.read_rgb(path)), (zlib.crc32(path.stem.encode()),))
            images.write(folder / f"{path.stem}.png", images.to_image(lr))


def main() -> None:
    params = load_params()
    manifest = fetch(
        params.data.source,
        params.data.folder,
        Path("data/hr"),
        holdout=params.data.holdout,
        holdout_dir=HOLDOUT / "HR",
        max_side=params.data.holdout_side,
        scale=params.scale,
        on_corrupt=params.data.on_corrupt,
    )
    degrade_holdout(params)
    absent = {name: reason for name, reason in metric_weights.prepare(Path("data/metric_weights")).items() if reason}
    for name, reason in absent.items():
        print(f"metric {name} will be absent: {reason}")
    print(", ".join(f"{len(manifest[name])} {name}" for name in ("pictures", "corrupt", "ignored")))


if __name__ == "__main__":
    run(main)

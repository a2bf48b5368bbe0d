"""Stage `download`: images of training, validation and the benchmark `holdout`, and the weights of the metrics."""

import os
from pathlib import Path

from tqdm import tqdm

from pipelines.stage import run
from upsr import images
from upsr.acquisition import metric_weights, sources
from upsr.acquisition.fetch import TRAIN, fetch
from upsr.acquisition.space import check_space, data_sizes
from upsr.config import Params, load_params
from upsr.degradation.second_order import build_degradation
from upsr.files import whole_folder

HOLDOUT = Path("data/benchmarks/holdout")


def degrade_holdout(params: Params) -> None:
    """Writes the benchmark's LR images. Each image gets a fixed degradation, derived from its name.

    It is independent of `seed`, so that trainings with different seeds are measured on the same images.
    """
    degrade = build_degradation(params.degradation, params.scale)
    with whole_folder(HOLDOUT / f"LRx{params.scale}") as folder:
        for path in tqdm(images.find(HOLDOUT / "HR"), desc="degrade", unit="image", disable=None):
            lr, _ = degrade.named(images.to_tensor(images.read_rgb(path)), path.stem)
            images.write(folder / f"{path.stem}.png", images.to_image(lr))


def main() -> None:
    params = load_params()
    # In the temporary copy of a DVC experiment, DVC_ROOT is the main checkout: its archives are reused.
    downloads = Path(os.environ.get("DVC_ROOT", ""), sources.ARCHIVES)
    check_space(data_sizes(params, downloads))
    manifest = fetch(
        params.data.source,
        params.data.folder,
        {TRAIN: Path("data/hr"), "holdout": HOLDOUT / "HR", "validation": Path("data/validation")},
        reserved=params.data.reserved,
        max_side=params.data.holdout_side,
        scale=params.scale,
        on_corrupt=params.data.on_corrupt,
        downloads=downloads,
    )
    degrade_holdout(params)
    missing = {name: reason for name, reason in metric_weights.prepare(Path("data/metric_weights")).items() if reason}
    for name, reason in missing.items():
        print(f"metric {name} will not be measured: {reason}")
    print(f"download: {len(manifest['pictures'])} images")
    if left_out := len(manifest["left_out"]):
        print(f"download: {left_out} files left out: `left_out` in data/hr/manifest.json gives the reasons")


if __name__ == "__main__":
    run(main)

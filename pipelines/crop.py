"""Stage `crop`: cuts the images of data/hr into the sub-images of data/subimages."""

from pathlib import Path

from pipelines.stage import run
from upsr.config import load_params
from upsr.data.subimages import crop


def main() -> None:
    params = load_params()
    report = crop(
        Path("data/hr"),
        Path("data/subimages"),
        size=params.crop.size,
        step=params.crop.step,
        threshold=params.crop.threshold,
        min_gradient=params.crop.min_gradient,
        on_corrupt=params.data.on_corrupt,
    )
    counts = {name: report[name] if name == "flat" else len(report[name]) for name in ("flat", "corrupt", "ignored")}
    skipped = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print(f"crop: {report['subimages']} sub-images of {len(report['cut'])} images{'; ' * bool(skipped)}{skipped}")


if __name__ == "__main__":
    run(main)

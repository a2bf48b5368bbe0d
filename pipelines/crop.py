"""DVC stage `crop`: the photographs of data/hr -> the sub-images of data/subimages."""

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
    left = {name: report[name] if name == "flat" else len(report[name]) for name in ("flat", "corrupt", "ignored")}
    rest = ", ".join(f"{count} {name}" for name, count in left.items() if count)
    print(f"crop: {report['subimages']} sub-images of {len(report['cut'])} pictures" + (f"; {rest}" if rest else ""))


if __name__ == "__main__":
    run(main)

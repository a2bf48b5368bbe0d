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
        on_corrupt=params.data.on_corrupt,
    )
    print(f"crop: {report['subimages']} sub-images of {report['pictures']} pictures", flush=True)


if __name__ == "__main__":
    run(main)

"""Makes a trained model starter weights: `python -m pipelines.starter models/unet`. Their card is hand-written."""

import argparse

import torch

from upsr.checkpoint import STARTERS, load_weights, save_weights, weights_file


def main() -> None:
    parser = argparse.ArgumentParser(description="make a trained model starter weights, in float16")
    parser.add_argument("model", help="a weights file, or the folder that holds it")
    weights, settings = load_weights(weights_file(parser.parse_args().model))
    name = f"upsr-{settings['unet']['dim']}" if "unet" in settings else f"atd-{settings['atd']['dim']}"
    target = STARTERS / name / "weights.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    halves = {k: v.half() if v.is_floating_point() else v.to(torch.int16) for k, v in weights.items()}  # indices < 1000
    save_weights(target, halves, settings)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Adds a trained model to the bundled weights: `python -m pipelines.bundle models/unet`. Write its card by hand."""

import argparse

import torch

from upsr.pretrained import BUNDLED, FILE, load_pretrained, save_pretrained, weights_file


def main() -> None:
    parser = argparse.ArgumentParser(description="Bundle a trained model's weights with the package, in float16.")
    parser.add_argument("model", help="weights file, or the folder that contains it")
    parser.add_argument("--name", help="folder in upsr/bundled (default: the network and its width, such as upsr-48)")
    parser.add_argument("--keep-colours", action="store_true", help="results get the low frequencies of LR")
    options = parser.parse_args()
    model = load_pretrained(weights_file(options.model))
    name = f"upsr-{model.settings['unet']['dim']}" if "unet" in model.parts else f"atd-{model.settings['atd']['dim']}"
    half = {  # integer tensors are indices below 1000
        part: {k: v.half() if v.is_floating_point() else v.to(torch.int16) for k, v in state.items()}
        for part, state in model.parts.items()
    }
    target = BUNDLED / (options.name or name) / FILE
    target.parent.mkdir(exist_ok=True)
    save_pretrained(target, half, {**model.settings, "keeps_colours": options.keep_colours})
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

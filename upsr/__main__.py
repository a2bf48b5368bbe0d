"""The `upsr` command."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from upsr import images
from upsr.images import ImageError, atomic

if TYPE_CHECKING:
    from upsr.inference.upscaler import Upscaled

MODEL = "models/unet"


def upscale(options: argparse.Namespace) -> None:
    """Files and folders through one model. A picture that fails is named, the others go on, the exit code tells."""
    from upsr.inference.upscaler import Upscaler

    jobs = outputs([Path(p) for p in options.input], Path(options.output))
    model = Upscaler.from_pretrained(
        options.model, device=device(options.device), dtype=options.dtype, steps=options.steps
    )
    failed = 0
    for source, target in tqdm(jobs, desc="upscale", unit="picture", disable=None):
        try:
            image = images.read(source)
            if options.save_maps:
                larger, maps = model.with_maps(image, seed=options.seed, tile=options.tile)
                save_maps(maps, target)
            else:
                larger = model(image, seed=options.seed, tile=options.tile)
            images.write(target, larger)
        except ImageError as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
    if failed:
        raise ImageError(f"{failed} of {len(jobs)} pictures could not be upscaled")


def save_maps(maps: "Upscaled", target: Path) -> None:
    """The uncertainty and the noise weight as colour maps beside the picture."""
    from upsr.inference.maps import heat_map

    images.write(target.with_name(f"{target.stem}.residual.png"), heat_map(maps.residual, 0, 0.1))
    images.write(target.with_name(f"{target.stem}.weight.png"), heat_map(maps.weight, 0, 1))


def outputs(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """(picture, where its result goes). One picture may go to a named file; several, or a folder, go to a folder."""
    pictures = [p for path in inputs for p in (images.find(path) if path.is_dir() else [path])]
    if not pictures:
        raise ImageError(f"{', '.join(map(str, inputs))}: no pictures there: name files or folders with pictures")
    if len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in images.SUFFIXES:
        if inputs[0].resolve() == output.resolve():
            raise ImageError(f"{output}: the result would replace the picture: choose another name")
        return [(pictures[0], output)]
    targets = [output / f"{p.stem}.png" for p in pictures]
    replaced = [p for p, t in zip(pictures, targets, strict=True) if p.resolve() == t.resolve()]
    if replaced:
        raise ImageError(f"{replaced[0]}: the result would replace it: choose another folder")
    twice = {t for t in targets if targets.count(t) > 1}
    if twice:
        raise ImageError(f"{min(twice)}: two pictures would be written there: upscale them one by one")
    return list(zip(pictures, targets, strict=True))


def device(name: str | None) -> str:
    """The device asked for, or the best there is. Raises `ValueError` where it cannot be used."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name}: cannot be used here: try cpu") from None
    return name


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def evaluate(options: argparse.Namespace) -> None:
    """One model on one benchmark folder."""
    import torch

    from upsr.data.benchmarks import open_benchmark
    from upsr.evaluation.benchmark import bicubic, summary
    from upsr.evaluation.benchmark import evaluate as measure
    from upsr.evaluation.metrics import Metrics
    from upsr.evaluation.protocol import PROTOCOLS
    from upsr.inference.upscaler import Upscaler

    place = torch.device(device(options.device))
    protocol = PROTOCOLS[options.protocol]
    if options.model == "bicubic":
        benchmark = open_benchmark(options.benchmark, options.scale)
        run = lambda lr, _: bicubic(lr, options.scale)  # noqa: E731
    else:
        model = Upscaler.from_pretrained(options.model, device=str(place))
        benchmark = open_benchmark(options.benchmark, model.scale)
        run = lambda lr, n: model.upscale(lr, seed=options.seed + n, tile=options.tile).picture  # noqa: E731
    metrics = Metrics(options.metrics, Path(options.weights), protocol, benchmark.scale, place)
    rows, failed = measure(run, benchmark, metrics)
    means = summary({"model": options.model} | row for row in rows).get(benchmark.name, {}).get(options.model, {})
    result = {
        "benchmark": benchmark.name,
        "model": options.model,
        "pictures": len(rows),
        "mean": means,
        "protocol": asdict(protocol),
        "seed": options.seed,
        "tile": options.tile,
        "digest": benchmark.digest,
        "absent": metrics.absent,
        "failed": failed,
        "rows": rows,
    }
    print(f"{benchmark.name}  {len(rows)} pictures  " + "  ".join(f"{k} {v:.4f}" for k, v in means.items()))
    for name, reason in metrics.absent.items():
        print(f"{name} is absent: {reason}")
    if options.json:
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    if failed:
        raise ImageError(f"{len(failed)} measurements failed: {failed[0]['picture']}: {failed[0]['reason']}")


def import_official(options: argparse.Namespace) -> None:
    """The authors' checkpoints as one weights file of ours."""
    from upsr.checkpoint import save_weights
    from upsr.models.official import convert

    weights, settings = convert(options.atd, options.unet, options.category_size)
    path = options.output / "weights.safetensors"
    save_weights(path, weights, settings)
    print(f"{path}: {' and '.join(name for name in ('atd', 'unet') if name in settings)}, x{settings['scale']}")


def parser() -> argparse.ArgumentParser:
    """The command line, every option with its default."""
    top = argparse.ArgumentParser(prog="upsr", description="Uncertainty-guided diffusion super-resolution.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        added = commands.add_parser(name, help=about, description=about, formatter_class=formatter)
        added.set_defaults(run=run)
        return added

    def with_model(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
        added.add_argument("--seed", type=int, default=0, help="same seed, same picture")
        added.add_argument("--tile", type=positive, default=128, help="side of a tile in LR pixels; bounds the memory")
        return added

    up = with_model(command("upscale", upscale, "make pictures four times as large"))
    up.add_argument("input", nargs="+", help="pictures or folders of pictures")
    up.add_argument("-o", "--output", required=True, help="a folder, or a file for a single picture")
    up.add_argument("--model", default=MODEL, help="a weights file or the folder that holds it")
    up.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="precision of the networks")
    up.add_argument("--steps", type=int, default=0, help="sampling steps (0: as trained)")
    up.add_argument("--save-maps", action="store_true", help="write uncertainty and noise weight beside each picture")

    ev = with_model(command("evaluate", evaluate, "measure a model on a folder with HR/ and LRx4/"))
    ev.add_argument("--model", default=MODEL, help="`bicubic`, a weights file or the folder that holds it")
    ev.add_argument("--benchmark", required=True, help="the folder")
    ev.add_argument("--protocol", choices=["basicsr", "upsr"], default="basicsr", help="what PSNR and SSIM see")
    ev.add_argument("--metrics", nargs="*", default=["lpips"], help="names of pyiqa beside PSNR and SSIM")
    ev.add_argument("--weights", default="data/metric_weights", help="where the metrics' weights are")
    ev.add_argument("--scale", type=int, default=4, help="for `bicubic`, which has none of its own")
    ev.add_argument("--json", type=Path, help="write means and rows to this file")

    im = command("import-official", import_official, "make a model of the authors' checkpoints; nothing in them is run")
    im.add_argument("--atd", type=Path, required=True, help="their `atd_real.pth`")
    im.add_argument("--unet", type=Path, help="their `upsr.pth` (without it: a model of ATD alone)")
    im.add_argument("-o", "--output", type=Path, required=True, help="the model's folder")
    im.add_argument("--category-size", type=int, default=128, help="ATD's, which its file does not tell")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. A mistake of the user's ends in one line and exit code 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        if options.debug or os.environ.get("UPSR_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

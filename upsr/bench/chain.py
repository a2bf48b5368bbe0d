"""Does the denoiser use x_t? Quality of x̂0 at every timestep, from true and from sampled x_t."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from upsr.data.benchmarks import Pair
from upsr.diffusion.denoiser import upsample
from upsr.diffusion.noise import field
from upsr.diffusion.samplers import sample
from upsr.evaluation.metrics import Metrics
from upsr.files import atomic
from upsr.images import number_of, pad_to, read_rgb, to_signed, to_tensor, to_unit
from upsr.inference.upscaler import Upscaler

COLUMNS = ("x_t", "from true x_t", "from sampled x_t")
"""A true x_t itself, x̂0 of a true x_t, and x̂0 along the sampled chain."""
METRICS = ("psnr", "lpips")
LEAST = 0.01  # dB of PSNR: a smaller difference is none


@dataclass(frozen=True)
class Chain:
    """Means over the images: `values[metric][column][i]` is at t = i + 1; `sr[metric]` is g(y)'s. PSNR is of RGB."""

    values: dict[str, dict[str, list[float]]]
    sr: dict[str, float]
    images: int

    @property
    def steps(self) -> int:
        """T."""
        return len(self.values["psnr"][COLUMNS[0]])

    def faults(self) -> list[str]:
        """What shows that the network does not use x_t; empty if it does."""
        noisy, true, sampled = (self.values["psnr"][column] for column in COLUMNS)
        found = [
            f"t = {t}: a true x_t has {before:.2f} dB, and its x̂0 only {after:.2f} dB: the network loses what x_t shows"
            for t, (before, after) in enumerate(zip(noisy, true, strict=True), 1)
            if after < before - LEAST
        ]
        first, last = sampled[-1], sampled[0]
        lpips = self.values["lpips"][COLUMNS[2]]
        if last < first - LEAST and lpips[0] > lpips[-1]:
            found.append(
                f"along the sampled chain x̂0 gets worse in both: PSNR {first:.2f} to {last:.2f} dB, "
                f"LPIPS {lpips[-1]:.4f} to {lpips[0]:.4f}"
            )
        return found


@torch.inference_mode()
def measure_chain(upscaler: Upscaler, pairs: Sequence[Pair], metrics: Metrics, *, side: int, seed: int) -> Chain:
    """Measures a model with a UNet on the centre of each image, `side` LR pixels wide.

    Raises `ValueError` for a model without UNet or pairs without HR, and `ImageError` for an unreadable image.
    """
    rows = [_measure(upscaler, pair, metrics, side, seed) for pair in tqdm(pairs, "chain", unit="image", disable=None)]
    values = {
        metric: {
            column: [fmean(row[column][t][metric] for row in rows) for t in range(len(rows[0][column]))]
            for column in COLUMNS
        }
        for metric in METRICS
    }
    return Chain(values, {metric: fmean(row["sr"][0][metric] for row in rows) for metric in METRICS}, len(rows))


def _measure(
    upscaler: Upscaler, pair: Pair, metrics: Metrics, side: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """The figures of one image: a list over t for each of `COLUMNS`, and `sr`."""
    if upscaler.diffuser is None:
        raise ValueError("bench chain: the model has no UNet: use one trained by `train_unet`, such as starter")
    if pair.hr is None:
        raise ValueError(f"bench chain: {pair.name} has no HR image: use a benchmark with references")
    s, denoiser = upscaler.scale, upscaler.diffuser.denoiser
    # the centre of LR, and the same of HR
    lr, hr = (to_tensor(read_rgb(path)).to(upscaler.device) for path in (pair.lr, pair.hr))
    top, left = (max(size - side, 0) // 2 for size in lr.shape[2:])
    lr = lr[:, :, top : top + side, left : left + side]
    height, width = (size * s for size in lr.shape[2:])
    hr = hr[:, :, top * s : top * s + height, left * s : left * s + width]
    multiple = upscaler.diffuser.multiple
    y = pad_to(lr, *(-(-size // multiple) * multiple for size in lr.shape[2:]))
    x0 = to_signed(pad_to(hr, *(s * size for size in y.shape[2:])))
    # condition
    y_up, g_y = to_signed(upsample(y, s)), to_signed(upscaler.atd(y).float())
    condition = denoiser.condition(g_y, y_up)

    def figures(x: Tensor) -> dict[str, float]:
        image = to_unit(x)[:, :, :height, :width].clamp(0, 1)
        rgb = -10 * (image - hr).square().mean().log10().item()
        return {"psnr": rgb, "lpips": metrics(image, hr)["lpips"]}

    def noise(t: int) -> Tensor:
        return field(seed + number_of(pair.name), t, 0, 0, *x0.shape[2:]).to(x0.device)

    found: dict[str, list[dict[str, float]]] = {"sr": [figures(g_y)], **{column: [] for column in COLUMNS}}
    # true x_t
    for step in range(1, denoiser.process.steps + 1):
        t = torch.tensor([step], device=x0.device)
        x_t, weight = denoiser.perturb(x0, y, y_up, g_y, noise(step), t)
        found["x_t"].append(figures(x_t))
        found["from true x_t"].append(figures(denoiser(x_t, t, condition, y_up, weight)))
    # sampled x_t, from T down to 1
    denoise = denoiser.denoise(condition, y_up)

    def recorded(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        estimate = denoise(x, t, weight)
        found["from sampled x_t"].insert(0, figures(estimate))
        return estimate

    weigh = denoiser.weigher(y_up, g_y, denoiser.uncertainty.analyse(y))
    sample(recorded, denoiser.process, y_up, weigh, noise, upscaler.diffuser.stochasticity)
    return found


def report(chain: Chain) -> str:
    """The figures as a table, from T down to 1, and what is wrong."""
    lines = [
        f"{chain.images} images; g(y): PSNR {chain.sr['psnr']:.2f} dB, LPIPS {chain.sr['lpips']:.4f}",
        f"{'':4}{'PSNR (dB) ↑':^33}{'LPIPS ↓':^33}",
        f"{'t':>4}" + f"{'x_t':>9}{'x̂0, true':>13}{'sampled x_t':>13}" * 2,  # x̂ takes two characters
    ]
    for t in range(chain.steps, 0, -1):
        cells = [(chain.values[m][c][t - 1], 2 if m == "psnr" else 4) for m in METRICS for c in COLUMNS]
        widths = (9, 12, 13) * 2
        lines.append(f"{t:>4}" + "".join(f"{v:{w}.{d}f}" for (v, d), w in zip(cells, widths, strict=True)))
    return "\n".join([*lines, *(chain.faults() or ["the network uses x_t at every t"])])


def plot(chain: Chain, path: Path) -> None:
    """Writes PSNR and LPIPS by t, from T on the left to 1 on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, metric, title in zip(figure.subplots(1, 2), METRICS, ("PSNR (dB) ↑", "LPIPS ↓"), strict=True):
        times = range(1, chain.steps + 1)
        for column, style in zip(COLUMNS, ("k:", "C0o-", "C1o-"), strict=True):
            axes.plot(times, chain.values[metric][column], style, label=column if column == "x_t" else f"x̂0 {column}")
        axes.axhline(chain.sr[metric], color="grey", linewidth=1, label="g(y)")
        if metric == "lpips":  # noise has a distance that leaves no room for the rest
            axes.set_ylim(0, 1.2 * max(chain.sr[metric], *(max(chain.values[metric][c]) for c in COLUMNS[1:])))
        axes.set(xlabel="t", title=title, xticks=times if chain.steps <= 15 else [])
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")

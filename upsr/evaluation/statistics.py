"""Statistics over images: means, their confidence intervals, and paired differences to a baseline."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from upsr.evaluation.metrics import Row, higher_is_better

NAMES = ("benchmark", "model", "picture")
RESAMPLES = 9999
CONFIDENCE = 0.95
ENOUGH_IMAGES = 30  # for the bootstrap
HEADLINE = {"psnr": max, "ssim": max, "lpips": min}  # what experiments are compared by, and which value is the best
RANKED_BY = ("lpips", "dists", "niqe", "psnr")  # images are ranked by the first of these that was measured


def summary(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over the images that have a value: benchmark -> model -> metric -> mean."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for (benchmark, model, metric), values in _values(rows).items():
        means.setdefault(benchmark, {}).setdefault(model, {})[metric] = fmean(values.values())
    return means


def headline(rows: Iterable[Row], model: str) -> dict[str, float]:
    """The model's means of the headline metrics, where they were measured: `BENCHMARK/METRIC` -> mean."""
    return {
        f"{benchmark}/{metric}": means[model][metric]
        for benchmark, means in summary(rows).items()
        for metric in HEADLINE
        if metric in means.get(model, {})
    }


def table(rows: Sequence[Row], baseline: str = "bicubic") -> list[Row]:
    """A row per benchmark, model and metric: {pictures, mean, std, low, high, difference, difference_low, ...}.

    `low` to `high` is the confidence interval of the mean. `difference` is the mean paired difference to the
    baseline on the same images. It is None for the baseline, and an interval is None for fewer than two images.
    """
    values = _values(rows)
    results = []
    for (benchmark, model, metric), own in values.items():
        low, high = interval(list(own.values()))
        row = {"benchmark": benchmark, "model": model, "metric": metric, "pictures": len(own)}
        row |= {"mean": fmean(own.values()), "std": stdev(own.values()) if len(own) > 1 else None}
        row |= {"low": low, "high": high}
        results.append(row | _paired(own, {} if model == baseline else values.get((benchmark, baseline, metric), {})))
    return results


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of the mean; deterministic, for any order of the values.

    Below `ENOUGH_IMAGES`, by Student's t: the bootstrap of few values is too narrow (of 4 normal values, its 95 %
    cover 77 %). From there on by the bootstrap (percentile method), which follows skewed distributions.
    """
    if len(values) < 2:
        return None, None
    import numpy as np
    from scipy.stats import bootstrap, t

    ordered = np.sort(values)
    if len(values) < ENOUGH_IMAGES:
        mean, error = ordered.mean(), ordered.std(ddof=1) / np.sqrt(len(values))
        half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
        return float(mean - half), float(mean + half)
    result = bootstrap(
        (ordered,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(result.low), float(result.high)


def showcase(rows: Sequence[Row], model: str, limit: int, baseline: str = "bicubic") -> tuple[str, list[str]]:
    """(metric, names of images to show) of one benchmark's rows, sorted by the model's gain over the baseline.

    Above `limit` images, half are the best and half the worst. The metric is empty where no gain can be computed.
    """
    values = {(of, metric): own for (_, of, metric), own in _values(rows).items()}
    for metric in RANKED_BY:
        own, base = values.get((model, metric), {}), values.get((baseline, metric), {})
        sign = 1 if higher_is_better(metric) else -1
        gains = {image: sign * (own[image] - base[image]) for image in own.keys() & base.keys()}
        if gains:
            ranked = sorted(gains, key=lambda image: (-gains[image], image))
            half = limit // 2
            return metric, ranked if len(ranked) <= limit else ranked[:half] + ranked[-half:]
    return "", sorted({row["picture"] for row in rows})[:limit]


def _values(rows: Iterable[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(benchmark, model, metric) -> image -> value."""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NAMES and value is not None:
                values.setdefault((row["benchmark"], row["model"], name), {})[row["picture"]] = value
    return values


def _paired(own: dict[str, float], base: dict[str, float]) -> Row:
    """The mean difference on the images that both have, with its interval."""
    differences = [own[image] - base[image] for image in sorted(own.keys() & base.keys())]
    low, high = interval(differences)
    mean = fmean(differences) if differences else None
    return {"difference": mean, "difference_low": low, "difference_high": high}

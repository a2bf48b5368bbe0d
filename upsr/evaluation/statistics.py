"""What many pictures say together: means, how sure these are, and what is gained over a baseline."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from upsr.evaluation.metrics import Row, higher_is_better

NAMES = ("benchmark", "model", "picture")
RESAMPLES = 9999
CONFIDENCE = 0.95
RANKED_BY = ("lpips", "dists", "niqe", "psnr")  # the first that was measured says which pictures are the best


def summary(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over the pictures that have a value: benchmark -> model -> metric. Each row names its `model`."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for (benchmark, model, metric), values in _values(rows).items():
        means.setdefault(benchmark, {}).setdefault(model, {})[metric] = fmean(values.values())
    return means


def table(rows: Sequence[Row], baseline: str = "bicubic") -> list[Row]:
    """A row for each benchmark, model and metric: {pictures, mean, std, low, high, difference, difference_low, ...}.

    `low` to `high` is the bootstrap confidence interval of the mean. `difference` is that to the baseline on the same
    pictures, None for the baseline itself, and so is an interval of less than two pictures.
    """
    values = _values(rows)
    found = []
    for (benchmark, model, metric), own in values.items():
        low, high = interval(list(own.values()))
        row = {"benchmark": benchmark, "model": model, "metric": metric, "pictures": len(own)}
        row |= {"mean": fmean(own.values()), "std": stdev(own.values()) if len(own) > 1 else None}
        row |= {"low": low, "high": high}
        found.append(row | _paired(own, {} if model == baseline else values.get((benchmark, baseline, metric), {})))
    return found


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the mean by bootstrap; always the same for the same values in any order."""
    if len(values) < 2:
        return None, None
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.sort(values),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def showcase(rows: Sequence[Row], model: str, most: int, baseline: str = "bicubic") -> tuple[str, list[str]]:
    """What to look at of one benchmark: a metric, and pictures from the model's greatest gain in it over the baseline
    down; at most `most`, half of them the best and half the worst. `rows` are those of the benchmark."""
    values = {(of, metric): own for (_, of, metric), own in _values(rows).items()}
    for metric in RANKED_BY:
        own, base = values.get((model, metric), {}), values.get((baseline, metric), {})
        sign = 1 if higher_is_better(metric) else -1
        gains = {picture: sign * (own[picture] - base[picture]) for picture in own.keys() & base.keys()}
        if gains:
            ranked = sorted(gains, key=lambda picture: (-gains[picture], picture))
            half = most // 2
            return metric, ranked if len(ranked) <= most else ranked[:half] + ranked[-half:]
    return "", sorted({row["picture"] for row in rows})[:most]


def _values(rows: Iterable[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(benchmark, model, metric) -> picture -> value."""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NAMES and value is not None:
                values.setdefault((row["benchmark"], row["model"], name), {})[row["picture"]] = value
    return values


def _paired(own: dict[str, float], base: dict[str, float]) -> Row:
    """The mean difference on the pictures that both have, with its interval."""
    differences = [own[picture] - base[picture] for picture in sorted(own.keys() & base.keys())]
    low, high = interval(differences)
    mean = fmean(differences) if differences else None
    return {"difference": mean, "difference_low": low, "difference_high": high}

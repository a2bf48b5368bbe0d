"""Comparisons between arms, on tables whose truth is known: what is there is found, and what is not is not."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from pipelines.contrasts import Declared, _panel, contrast_table, forest
from upsr import images
from upsr.evaluation.contrasts import MARGINS, Contrast, contrast, holm, sentence, verdict

VERSUS = [Declared("A against B", "A", "B")]
rng = np.random.default_rng


def differences(random: np.random.Generator, seeds: int, count: int, of_seeds: float, of_images: float) -> np.ndarray:
    """(seeds, images) around 0, with an error of variance 1 and the given variances of seeds and images."""
    seed = random.normal(0, math.sqrt(of_seeds), (seeds, 1))
    image = random.normal(0, math.sqrt(of_images), (1, count))
    return seed + image + random.normal(0, 1, (seeds, count))


def of(d: np.ndarray) -> Contrast:
    """The contrast of two arms that differ by `d`; the second has images of very different levels."""
    b = np.broadcast_to(np.linspace(10, 40, d.shape[1]), d.shape)
    return contrast(b + d, b)


# Intervals and p values.


@pytest.mark.parametrize("count", [5, 14, 100])
@pytest.mark.parametrize("seeds", [3, 6])
def test_intervals_cover_what_they_say(seeds: int, count: int) -> None:
    """Seeds and images contribute equally to the variance of the mean."""
    random = rng(seeds * count)
    found = [of(differences(random, seeds, count, seeds / count, 1)) for _ in range(2000)]
    covered = np.mean([low <= 0 <= high for low, high in (f.interval() for f in found)])
    assert 0.93 <= covered <= 0.985
    assert covered == np.mean([f.p >= 0.05 for f in found])


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.87), (3, 0.915), (6, 0.935)])
def test_the_docstring_names_the_lowest_coverage(seeds: int, least: float) -> None:
    """Seeds contribute ten times as much as images, the worst case."""
    random = rng(seeds)
    found = [of(differences(random, seeds, 100, seeds / 10, 1)) for _ in range(2000)]
    covered = np.mean([low <= 0 <= high for low, high in (f.interval() for f in found)])
    assert least <= covered <= 0.96


def test_images_alone_would_give_false_certainty() -> None:
    """Six trainings that differ: a paired t test over the images finds differences that are none."""
    random = rng(0)
    arms = [differences(random, 6, 100, 0.3, 1) for _ in range(1000)]
    assert np.mean([ttest_1samp(d.mean(axis=0), 0).pvalue < 0.05 for d in arms]) > 0.3
    assert np.mean([of(d).p < 0.05 for d in arms]) < 0.075


@pytest.mark.parametrize("axis", [0, 1])
def test_one_source_of_variation_gives_its_t_test(axis: int) -> None:
    values = rng(1).normal(0.3, 1, 5 if axis == 0 else 7)
    d = np.broadcast_to(values[:, None] if axis == 0 else values, (5, 7))
    test = ttest_1samp(values, 0)
    found = contrast(d, np.zeros((5, 7)))
    assert found.p == pytest.approx(test.pvalue) and found.degrees_of_freedom == pytest.approx(len(values) - 1)
    assert found.interval() == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_the_variance_by_hand() -> None:
    """Mean squares: seeds 6, images 6, error 2; so the mean's variance is (6 + 6 - 2) / 6."""
    d = np.array([[1.0, 2, 3], [3, 2, 7]])
    found = contrast(d, np.zeros((2, 3)))
    assert found.difference == 3 and found.standard_error == pytest.approx(math.sqrt(10 / 6))
    assert found.degrees_of_freedom == pytest.approx(10**2 / (6**2 / 1 + 6**2 / 2 + 2**2 / 2))


def test_exchanging_the_arms_changes_the_sign_alone() -> None:
    a, b = rng(2).normal(size=(2, 4, 9))
    one, other = contrast(a, b), contrast(b, a)
    assert one.difference == -other.difference and one.p == pytest.approx(other.p)
    assert one.interval() == pytest.approx(tuple(-end for end in reversed(other.interval())))


@pytest.mark.parametrize("shape", [(1, 20), (3, 1), (1, 1)])
def test_a_single_seed_or_image_gives_no_interval(shape: tuple[int, int]) -> None:
    found = contrast(rng(3).normal(1, 1, shape), np.zeros(shape))
    assert found.interval() == (None, None) and found.p is None and not found.is_within(100)
    assert verdict(found, "psnr", None) == "no interval"
    assert f"at least two {'seeds' if shape[0] == 1 else 'images'}" in sentence(found, "psnr", "A", "B", None)


def test_what_is_missing_is_named() -> None:
    a = np.ones((3, 4))
    b = a.copy()
    b[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"b has no value at \(seed 1, image 2\)"):
        contrast(a, b)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 3\)"):
        contrast(a, a[:, :3])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.01, None, None]) == [0.03, None, None], "a missing comparison makes the others no more certain"


def test_a_family_of_nulls_is_called_different_at_the_nominal_rate() -> None:
    """Families of six comparisons without a difference."""
    random = rng(4)
    found = [[of(differences(random, 3, 14, 0.2, 1)).p for _ in range(6)] for _ in range(500)]
    uncorrected = np.mean([min(p) < 0.05 for p in found])
    corrected = np.mean([min(holm(p)) < 0.05 for p in found])
    assert 0.02 <= corrected <= 0.07 < 0.15 < uncorrected


# Verdicts.


def certain(difference: float, standard_error: float, metric: str, p: float) -> tuple[str, str]:
    found = Contrast(difference, standard_error, 20.0, 6, 100)
    return verdict(found, metric, p), sentence(found, metric, "A", "B", p)


def test_verdicts_in_words() -> None:
    evidence = "6 seeds, 100 images, p = 0.001 after Holm"
    assert certain(-0.012, 0.002, "lpips", 0.001) == (
        "better",
        f"LPIPS of A is better than that of B by 0.0120 (0.0078 to 0.0162, {evidence})",
    )
    assert certain(-0.5, 0.1, "psnr", 0.001) == (
        "worse",
        f"PSNR of A is worse than that of B by 0.500 (0.291 to 0.709, {evidence})",
    )
    assert certain(-0.001, 0.0001, "lpips", 0.0001) == (
        "better",
        "LPIPS of A is better than that of B by 0.0010 (0.0008 to 0.0012, 6 seeds, 100 images, p < 0.001 after Holm), "
        "less than the margin of 0.005",
    )
    assert certain(0.001, 0.001, "lpips", 1.0) == (
        "equal",
        "LPIPS of A is equal to that of B within 0.005 (90 % interval -0.0007 to 0.0027, 6 seeds, 100 images)",
    )
    assert certain(0.001, 0.004, "lpips", 1.0) == (
        "undecided",
        "LPIPS of A against that of B is undecided: the interval reaches from -0.0073 to 0.0093, lower is better "
        "(6 seeds, 100 images, p = 1.000 after Holm)",
    )


def test_without_a_margin_nothing_is_equal() -> None:
    assert "piqe" not in MARGINS
    assert certain(0.0, 1e-9, "piqe", 1.0)[0] == "undecided"


def test_an_arm_equals_itself() -> None:
    a = rng(5).normal(size=(3, 8))
    assert verdict(contrast(a, a), "psnr", contrast(a, a).p) == "equal"


# Tables.


def table_of(gains: dict[str, float], seeds: int = 4, noise: float = 0.002) -> pd.DataFrame:
    """Arms whose LPIPS is `gain` lower and PSNR 10 · `gain` higher than the images' own, on two benchmarks."""
    random = rng(6)
    rows = []
    for benchmark, count in (("Set5", 5), ("Set14", 14)):
        level = random.normal(0.3, 0.1, count)
        for arm, gain in gains.items():
            for seed in range(seeds):
                chance = random.normal(0, noise) + random.normal(0, noise, count)
                for i in range(count):
                    lpips = level[i] - gain + chance[i]
                    cell = {"arm": arm, "seed": seed, "benchmark": benchmark, "picture": f"{i:02}"}
                    rows.append(cell | {"lpips": lpips, "psnr": 30 - 10 * lpips, "niqe": 5 + lpips})
    return pd.DataFrame(rows)


def test_a_planted_difference_is_found_with_its_sign() -> None:
    values = table_of({"A": 0.02, "B": 0.0, "C": 0.02})
    declared = [*VERSUS, Declared("B against A", "B", "A"), Declared("A against C", "A", "C")]
    table = (
        contrast_table(values, declared, ["psnr", "lpips"]).set_index(["contrast", "benchmark", "metric"]).sort_index()
    )
    for benchmark, count in (("Set5", 5), ("Set14", 14)):
        found = table.loc[("A against B", benchmark)]
        assert found.loc["lpips", "low"] < -0.02 < found.loc["lpips", "high"] < 0
        assert 0 < found.loc["psnr", "low"] < 0.2 < found.loc["psnr", "high"]
        assert list(found["verdict"][["lpips", "psnr"]]) == ["better", "better"]
        assert set(found["seeds"]) == {4} and set(found["images"]) == {count}
        assert set(table.loc[("B against A", benchmark), "verdict"]) == {"worse"}
        assert "better" not in set(table.loc[("A against C", benchmark), "verdict"])
    primary = table[table.index.get_level_values("metric") != "niqe"]
    assert list(primary["p_holm"]) == pytest.approx(holm(list(primary["p"])))
    rest = table[table.index.get_level_values("metric") == "niqe"]
    assert list(rest["p_holm"]) == pytest.approx(holm(list(rest["p"])))


@pytest.mark.parametrize(("noise", "found"), [(0.001, "equal"), (0.02, "undecided")])
def test_equality_needs_precision(noise: float, found: str) -> None:
    table = contrast_table(table_of({"A": 0.0, "B": 0.0}, noise=noise), VERSUS, ["lpips"])
    assert set(table["verdict"][table["metric"] == "lpips"]) == {found}


def test_the_order_of_rows_changes_nothing() -> None:
    values = table_of({"A": 0.01, "B": 0.0})
    shuffled = values.sample(frac=1, random_state=0)
    key = ["contrast", "benchmark", "metric"]
    one, other = (contrast_table(v, VERSUS, ["psnr"]).sort_values(key, ignore_index=True) for v in (values, shuffled))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_only_shared_seeds_count() -> None:
    values = table_of({"A": 0.01, "B": 0.0})
    extra = values[values["arm"] == "A"].assign(seed=lambda rows: rows["seed"] + 2, lpips=9.0)
    both = pd.concat([values[(values["arm"] == "B") | (values["seed"] < 2)], extra])
    table = contrast_table(both[both["seed"] < 2], VERSUS, ["psnr"])
    wider = contrast_table(pd.concat([both[both["seed"] < 2], extra[extra["seed"] > 3]]), VERSUS, ["psnr"])
    pd.testing.assert_frame_equal(table, wider)
    assert set(table["seeds"]) == {2}


def test_a_missing_value_is_no_number() -> None:
    values = table_of({"A": 0.01, "B": 0.0})
    whole = contrast_table(values, VERSUS, ["psnr", "lpips"])
    gone = (
        (values["benchmark"] == "Set5") & (values["arm"] == "B") & (values["seed"] == 1) & (values["picture"] == "03")
    )
    for damaged in (values[~gone], values.assign(lpips=values["lpips"].mask(gone))):
        table = contrast_table(damaged, VERSUS, ["psnr", "lpips"])
        row = table[(table["benchmark"] == "Set5") & (table["metric"] == "lpips")].iloc[0]
        assert row["verdict"] == "not measured" and row[["difference", "low", "high", "p", "p_holm"]].isna().all()
        assert row["sentence"] == "Set5: not measured: lpips of B is missing for 03, seed 1: evaluate it again"
        other = table["benchmark"] == "Set14"
        pd.testing.assert_frame_equal(table[other].drop(columns="p_holm"), whole[other].drop(columns="p_holm"))
        assert (table["p_holm"][other] >= whole["p_holm"][other]).all()


def test_arms_that_share_no_seed_are_not_compared() -> None:
    values = table_of({"A": 0.01, "B": 0.0})
    table = contrast_table(values[(values["arm"] == "A") | (values["seed"] > 9)], VERSUS, ["psnr"])
    assert set(table["verdict"]) == {"not measured"}
    assert "A and B have no seed in common: [0, 1, 2, 3] and []" in table["sentence"][0]


def test_two_rows_of_one_image_are_refused() -> None:
    values = table_of({"A": 0.01, "B": 0.0})
    with pytest.raises(ValueError, match="A/0/Set5/00: more than one row"):
        contrast_table(pd.concat([values, values[:1]]), VERSUS, ["psnr"])


def test_the_forest_plot(tmp_path: Path) -> None:
    """Panels make the plot wider, contrasts make it higher, and what was not measured does not stop it."""
    values = table_of({"A": 0.01, "B": 0.0, "C": 0.0}, seeds=2)
    values = values[(values["arm"] != "C") | (values["seed"] == 0)]
    sizes = []
    for metrics, declared in ((2, 1), (3, 1), (3, 3)):
        pairs = [*VERSUS, Declared("C against B", "C", "B"), Declared("D against B", "D", "B")][:declared]
        table = contrast_table(values[values.columns[: 4 + metrics]], pairs, ["psnr"])
        forest(table, tmp_path / "forest.png")
        sizes.append(images.read(tmp_path / "forest.png").shape[:2])
    assert set(table["verdict"]) >= {"no interval", "not measured"}
    (h2, w2), (h3, w3), (h4, w4) = sizes
    assert h2 == h3 < h4 and w2 < w3 == w4


def test_a_wide_interval_is_cut_so_that_the_others_can_be_read() -> None:
    """That of two seeds may be a hundred times as wide; the margin of LPIPS is 0.005."""
    rows = pd.DataFrame({"difference": [0.02, 0.01], "low": [0.01, -4.0], "high": [0.03, 5.0], "verdict": "undecided"})
    axes = Figure().subplots()
    _panel(axes, rows, "lpips")
    assert -0.05 < axes.get_xlim()[0] < -0.04 and 0.04 < axes.get_xlim()[1] < 0.05
    arrows = [(line.get_marker(), *line.get_ydata()) for line in axes.lines if line.get_marker() in ("<", ">")]
    assert arrows == [("<", 1), (">", 1)]


def test_two_seeds_give_an_interval_with_an_end():
    """Where seeds and images vary less than chance would have it."""
    worst = 0.0
    for seed in range(300):
        d = np.random.default_rng(seed).normal(0, 1, (2, 5))
        d -= d.mean(axis=1, keepdims=True)  # nothing between seeds
        low, high = contrast(d, np.zeros((2, 5))).interval()
        assert low is not None and high is not None
        worst = max(worst, high - low)
    assert worst < 20  # t of one degree of freedom is 12.7

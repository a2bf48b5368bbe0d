"""`upsr bench chain`: does the network use x_t? A small network trained for a minute or two must."""

from upsr.bench.chain import COLUMNS, Chain, report


def chain(**lpips_and_psnr: list[float]) -> Chain:
    """A chain of two steps: each argument is [at t = 1, at t = 2]."""
    values = {m: {c: [0.0, 0.0] for c in COLUMNS} for m in ("psnr", "lpips")}
    for name, at in lpips_and_psnr.items():
        metric, column = name.split("_", 1)
        values[metric][{"x": COLUMNS[0], "true": COLUMNS[1], "sampled": COLUMNS[2]}[column]] = at
    return Chain(values, {"psnr": 25.0, "lpips": 0.4}, images=3)


def test_a_network_that_uses_what_it_is_given_has_no_faults():
    good = chain(psnr_x=[35, 13], psnr_true=[36, 25], psnr_sampled=[24, 25], lpips_sampled=[0.3, 0.4])
    assert good.faults() == []
    assert "the network uses x_t at every t" in report(good)


def test_a_network_that_loses_what_x_t_shows_is_told():
    lost = chain(psnr_x=[35, 13], psnr_true=[30.5, 25], psnr_sampled=[25, 25])
    assert lost.faults() == [
        "t = 1: a true x_t has 35.00 dB, and its x̂0 only 30.50 dB: the network loses what x_t shows"
    ]


def test_a_chain_that_gets_worse_in_both_is_told():
    worse = chain(psnr_x=[1, 1], psnr_true=[2, 2], psnr_sampled=[24, 25], lpips_sampled=[0.5, 0.4])
    assert "along the sampled chain x̂0 gets worse in both: PSNR 25.00 to 24.00 dB" in report(worse)
    only_psnr = chain(psnr_x=[1, 1], psnr_true=[2, 2], psnr_sampled=[24, 25], lpips_sampled=[0.4, 0.4])
    assert only_psnr.faults() == []

"""The gate of the night, as a table: what evidence leads to which verdict. Missing evidence never promotes."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from pipelines.gate import Case, Evidence, Verdict, judge
from upsr.config import Nightly

RULES = Nightly.model_validate(
    {
        "metrics": {"psnr": {"better": "higher", "tolerance": 0.05}, "lpips": {"better": "lower", "tolerance": 0.002}},
        "improves": "lpips",
        "by": 0.001,
        "webhook": None,
    }
)
IMAGES = {"Set5": 5, "Set14": 14}
REQUIRED = {b: {f"{i}": frozenset({"psnr", "lpips"}) for i in range(n)} for b, n in IMAGES.items()}


def evidence(
    psnr: float = 0.0, lpips: float = 0.0, *, noise: float = 0.0, night: str = "2026-11-01", digest: str = "champion",
    seed: int = 1, centred: bool = True, only: str | None = None,
) -> Evidence:  # fmt: skip
    """Figures that differ from the champion's by a constant on every image, or on one benchmark, and by noise."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for benchmark, count in IMAGES.items():
        shift = 1.0 if only in (None, benchmark) else 0.0
        chance = noise * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        chance = chance - chance.mean(0) if centred else chance
        values[benchmark] = {
            f"{i}": {
                "psnr": 25 + i / 2 + shift * psnr + chance[i, 0].item(),
                "lpips": 0.3 - i / 100 + shift * lpips + chance[i, 1].item() / 25,
            }
            for i in range(count)
        }
    return Evidence(night, digest, dict.fromkeys(IMAGES, "images"), values)


CHAMPION = evidence()
BETTER = evidence(0, -0.01, digest="new")


def changed(own: Evidence, benchmark: str, image: str | None, metric: str | None, value: float | None) -> Evidence:
    """The same with another value, or without: of a metric, an image or a benchmark."""
    values = copy.deepcopy(own.values)
    if image is None:
        del values[benchmark]
    elif metric is None:
        del values[benchmark][image]
    elif value is None:
        del values[benchmark][image][metric]
    else:
        values[benchmark][image][metric] = value
    return replace(own, values=values)


def without_lpips(own: Evidence) -> Evidence:
    values = {b: {i: {"psnr": v["psnr"]} for i, v in images.items()} for b, images in own.values.items()}
    return replace(own, values=values)


def moved(images: dict[str, str]) -> Evidence:
    return replace(CHAMPION, images=dict(CHAMPION.images) | images, night="2026-10-01")


def night(**changes: object) -> Case:
    """A good night: the champion as always, and a candidate that is better."""
    case = Case(REQUIRED, CHAMPION, BETTER, replace(CHAMPION, night="2026-10-01"))
    return replace(case, **changes)  # type: ignore[arg-type]


def first(**changes: object) -> Case:
    """The night of a first champion, which bicubic is far below."""
    bicubic = evidence(-2, 0.2, night="tonight", digest="bicubic")
    return replace(Case(REQUIRED, None, BETTER, bicubic=bicubic), **changes)  # type: ignore[arg-type]


def at(psnr: float, lpips: float, **more: float) -> Case:
    return night(candidate=evidence(psnr, lpips, digest="new", **more))


SCENARIOS: dict[str, tuple[Case, str, bool, str]] = {
    # the candidate's figures
    "better in one, equal in the other": (night(), "promoted", False, "lpips gains +0.0100 over champion"),
    "better, and within the tolerance in the other": (at(-0.049, -0.01), "promoted", False, "lpips gains"),
    "the same figures": (at(0, 0), "rejected", False, "no gain above 0.001"),
    "the least gain that is asked": (at(0, -0.0009), "rejected", False, "no gain above 0.001"),
    "better, but beyond the tolerance in the other": (at(-0.051, -0.01), "rejected", False, "worse: psnr gains -0.05"),
    "worse in the ruling metric": (at(1, 0.01), "rejected", False, "worse: lpips gains -0.0100"),
    "worse in all": (at(-16, 0.3), "rejected", False, "worse: psnr gains -16.0000"),
    "worse on the smaller benchmark": (
        night(candidate=evidence(-0.06, -0.01, digest="new", only="Set5")), "rejected", False, "worst on Set5: -0.06"
    ),
    "a gain that may be chance": (at(0, -0.002, noise=0.3), "undecided", False, "the gain may be chance"),
    "a harm that is not excluded": (at(0, -0.05, noise=0.2), "undecided", False, "harm is not excluded: psnr"),
    "forty promotions that each lost a little": (
        night(
            champion=evidence(-0.049), reference=evidence(-0.049), candidate=evidence(-0.098, -0.01, digest="new"),
            predecessors=[replace(CHAMPION, night="2026-09-01", digest="old")],
        ), "rejected", False, "psnr gains -0.0980 over 2026-09-01"
    ),
    "an earlier champion on other images": (
        night(predecessors=[replace(evidence(5, -0.1), images={"Set5": "others", "Set14": "others"})]),
        "promoted", False, "lpips gains",
    ),
    "none": (night(candidate=None), "no candidate", False, "no candidate"),
    # the candidate's evidence
    "NaN on one image": (
        night(candidate=changed(BETTER, "Set5", "3", "psnr", math.nan)), "undecided", False, "Set5: no psnr of 3"
    ),
    "infinity on one image": (
        night(candidate=changed(BETTER, "Set14", "0", "lpips", math.inf)), "undecided", False, "no lpips of 0"
    ),
    "one image out of memory": (
        night(candidate=changed(BETTER, "Set5", "0", None, None)), "undecided", False, "no lpips of 0, psnr of 0"
    ),
    "a benchmark not measured": (
        night(candidate=changed(BETTER, "Set14", None, None, None)), "undecided", False, "and 25 more"
    ),
    "nothing measured": (night(candidate=replace(BETTER, values={})), "undecided", False, "candidate on Set5"),
    "without the ruling metric": (night(candidate=without_lpips(BETTER)), "undecided", False, "no lpips"),
    "one image, so no interval": (
        night(required={"Set5": {"0": frozenset({"psnr", "lpips"})}},
              champion=replace(CHAMPION, values={"Set5": {"0": {"psnr": 25.0, "lpips": 0.3}}}),
              candidate=replace(BETTER, values={"Set5": {"0": {"psnr": 25.0, "lpips": 0.2}}})),
        "undecided", False, "one image shows no interval",
    ),
    # the champion's evidence
    "the champion lacks one value": (
        night(champion=changed(CHAMPION, "Set5", "3", "psnr", math.nan)), "undecided", True, "champion on Set5: no psnr"
    ),
    "the champion was not measured": (night(champion=replace(CHAMPION, values={})), "undecided", True, "champion on"),
    "the ruling metric is absent": (
        night(champion=without_lpips(CHAMPION), candidate=without_lpips(BETTER)),
        "undecided", True, "champion on Set5: no lpips",
    ),
    "the ruling metric is not measured": (
        night(required={b: {i: frozenset({"psnr"}) for i in images} for b, images in REQUIRED.items()}, candidate=None),
        "undecided", True, "no benchmark was measured by the ruling metric lpips",
    ),
    "the store does not answer": (
        night(champion=None, candidate=None, lost=["MLflow does not answer"]), "undecided", True, "MLflow does not"
    ),
    "the alias is gone": (first(lost=["no version has the alias"]), "undecided", True, "no version has the alias"),
    "drift down": (night(champion=evidence(-0.06)), "undecided", True, "drift: the champion's psnr on Set14"),
    "drift up": (night(champion=evidence(0.06)), "undecided", True, "drift: the champion's psnr on Set5"),
    "drift of other signs": (
        night(champion=evidence(noise=0.2)), "undecided", True, "drift: the champion's psnr"
    ),
    "drift on one image of fourteen": (
        night(champion=changed(CHAMPION, "Set14", "3", "psnr", 26.5 - 0.6)), "undecided", True, "on one image by 0.6000"
    ),
    "drift within the tolerance": (night(champion=evidence(-0.049)), "promoted", False, "lpips gains"),
    "sixty nights that each lost a little": (
        night(champion=evidence(60 * -0.049)), "undecided", True, "differs by 2.9400 from 2026-10-01"
    ),
    "the images of a benchmark were replaced": (
        night(reference=moved({"Set5": "before"})), "undecided", True, "the images of Set5 are not those of 2026-10-01"
    ),
    "a benchmark vanished": (
        night(reference=moved({"Urban100": "images"})), "undecided", True, "Urban100 is gone"
    ),
    "a new benchmark": (
        night(reference=replace(CHAMPION, images={"Set5": "images"}, values={"Set5": CHAMPION.values["Set5"]})),
        "promoted", False, "lpips gains",
    ),
    "a champion's first night": (night(reference=None), "promoted", False, "lpips gains"),
    # a first champion
    "a first champion": (first(), "promoted", False, "the first champion: better than bicubic"),
    "a first candidate below bicubic": (
        first(candidate=evidence(-16, 0.4, digest="new")), "rejected", False, "not better than bicubic"
    ),
    "a first candidate all NaN": (
        first(candidate=replace(BETTER, values={"Set5": {}, "Set14": {}})), "undecided", False, "candidate on Set5"
    ),
    "a first candidate with one NaN": (
        first(candidate=changed(BETTER, "Set5", "0", "psnr", math.nan)), "undecided", False, "no psnr of 0"
    ),
    "a first candidate, bicubic not measured": (first(bicubic=None), "undecided", False, "bicubic: nothing"),
    "a first candidate, bicubic incomplete": (
        first(bicubic=changed(evidence(-2, 0.2), "Set5", "0", "lpips", None)), "undecided", False, "bicubic on Set5"
    ),
    "a first candidate, no benchmark": (first(required={}), "undecided", False, "no benchmark was measured"),
    "a first candidate, no image with the ruling metric": (
        first(required={b: {i: frozenset({"psnr"}) for i in images} for b, images in REQUIRED.items()}),
        "undecided", False, "no benchmark was measured by the ruling metric lpips",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_evidence_leads_to_which_verdict(name: str):
    case, outcome, alarm, reason = SCENARIOS[name]
    found = judge(case, RULES)
    assert (found.outcome, found.alarm) == (outcome, alarm), found.reasons
    assert any(reason in text for text in found.reasons), found.reasons
    print(f"{name}: {found}")


def test_no_value_can_be_left_out_of_a_promotion():
    """Whatever single value a model lacks, the champion stays."""
    assert judge(night(), RULES).outcome == judge(first(), RULES).outcome == "promoted"
    for benchmark, images in REQUIRED.items():
        for image, metrics in images.items():
            for metric in metrics:
                for value in (None, math.nan, -math.inf):
                    for case in (
                        night(candidate=changed(BETTER, benchmark, image, metric, value)),
                        night(champion=changed(CHAMPION, benchmark, image, metric, value)),
                        first(candidate=changed(BETTER, benchmark, image, metric, value)),
                    ):
                        assert judge(case, RULES).outcome == "undecided"


def test_candidates_that_gain_nothing_are_seldom_promoted():
    """With noise of the images alone, at most at the rate of one-sided 95 % intervals."""
    rules = RULES.model_copy(update={"by": 0.0})

    def judged(seed: int) -> Verdict:
        return judge(night(candidate=evidence(noise=0.02, seed=seed, digest="new", centred=False)), rules)

    outcomes = [judged(seed).outcome for seed in range(2, 402)]
    assert outcomes.count("promoted") / len(outcomes) < 0.08


def test_twenty_good_nights_raise_no_alarm():
    """The same champion, with figures that differ as two devices' do, and no candidate."""
    for seed in range(20):
        found = judge(night(champion=evidence(noise=0.005, seed=seed), candidate=None), RULES)
        assert (found.outcome, found.alarm) == ("no candidate", False)

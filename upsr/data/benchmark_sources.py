"""The field's benchmarks: what each holds, where it is to be had, and what to do by hand."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkSource:
    """A benchmark that is put into `data/benchmarks/NAME` by hand; `steps` end with that folder in place."""

    name: str
    pictures: int
    reference: bool
    """Is there an HR picture for each?"""
    address: str
    steps: str


EDSR = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
CLASSICAL = "copy {0}/HR to HR/ and {0}/LR_bicubic/X4 to LRx4/, and take the `x4` off the LR names"
RESSHIFT = "https://github.com/zsyOAOA/ResShift (branch journal)"

BENCHMARK_SOURCES = (
    BenchmarkSource("Set5", 5, True, EDSR, CLASSICAL.format("Set5")),
    BenchmarkSource("Set14", 14, True, EDSR, CLASSICAL.format("Set14")),
    BenchmarkSource("BSD100", 100, True, EDSR, CLASSICAL.format("B100")),
    BenchmarkSource("Urban100", 100, True, EDSR, CLASSICAL.format("Urban100")),
    BenchmarkSource(
        "RealSR",
        100,
        True,
        "https://github.com/csjcai/RealSR (version 3)",
        "copy Test/4 of Canon and of Nikon: *_HR.png to HR/, *_LR4.png to LRx4/, and take these endings off the names",
    ),
    BenchmarkSource(
        "RealSet65",
        65,
        False,
        RESSHIFT,
        "copy testdata/RealSet65 to LRx4/; there is no reference, so only metrics without one are computed",
    ),
    BenchmarkSource(
        "ImageNet-Test",
        3000,
        True,
        RESSHIFT,
        "copy its gt to HR/ and its lq to LRx4/. A set like it: 3,000 of ImageNet's validation pictures, the middle "
        "256x256 of each in HR/, and `upsr degrade HR -o LRx4 --seed 0`",
    ),
)

"""The field's benchmarks: contents, how LR was made, where to get them, and where to put them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownBenchmark:
    """A public benchmark, recognised by the name of its folder below data/benchmarks."""

    images: int | None
    """How many; None where params.yaml decides."""
    reference: bool
    """Whether each LR image has an HR image."""
    lr: str
    """How the LR images were made."""
    address: str
    """Where to get it."""
    steps: str
    """What the user must do; `{folder}` is the benchmark's folder."""

    def advice(self, folder: object) -> str:
        """One line for a benchmark that is missing: where to get it and where to put it."""
        steps = self.steps.format(folder=folder)
        return f"get {self.address}, {steps}" if self.address else steps


EDSR = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
RESSHIFT = "https://github.com/zsyOAOA/ResShift (branch journal)"
IMRESIZE = "bicubic x4 by MATLAB's imresize"


def _classical(images: int, name: str) -> KnownBenchmark:
    """A benchmark of EDSR's archive, where its folder is `name`."""
    steps = f"copy {name}/HR to {{folder}}/HR, {name}/LR_bicubic/X4 to {{folder}}/LRx4, and cut `x4` from the LR names"
    return KnownBenchmark(images, True, IMRESIZE, EDSR, steps)


def _degraded(images: int, name: str) -> KnownBenchmark:
    """A classical benchmark with LR images as poor as photographs on the web."""
    steps = f"run `upsr degrade data/benchmarks/{name}/HR -o {{folder}} --benchmark --scale df2k`"
    return KnownBenchmark(images, True, "second-order degradation by scales/df2k.yaml", "", steps)


KNOWN = {
    "holdout": KnownBenchmark(
        None,
        True,
        "second-order degradation by params.yaml, seeded by each picture's name",
        "",
        "run `dvc repro download`",
    ),
    "Set5": _classical(5, "Set5"),
    "Set14": _classical(14, "Set14"),
    "BSD100": _classical(100, "B100"),
    "Urban100": _classical(100, "Urban100"),
    "Set5-degraded": _degraded(5, "Set5"),
    "Set14-degraded": _degraded(14, "Set14"),
    "BSD100-degraded": _degraded(100, "BSD100"),
    "ImageNet-Test": KnownBenchmark(
        3000,
        True,
        "ResShift's recipe: blur, resize and noise once, JPEG twice",
        RESSHIFT,
        "put the gt/ and lq/ that its README links into {folder}; or make a similar set of your ImageNet: "
        "run `upsr degrade IMAGENET/val -o {folder} --benchmark --scale imagenet-test --sample 3000 --side 256 "
        "--seed 10000`",
    ),
    "RealSR": KnownBenchmark(
        100,
        True,
        "photographed with a shorter focal length",
        "https://github.com/csjcai/RealSR (version 3)",
        'unpack it and run `ln -s "$PWD/RealSR(V3)" {folder}`; Canon/Test/4 and Nikon/Test/4 are measured as released',
    ),
    "RealSet65": KnownBenchmark(
        65,
        False,
        "photographs as found, without a reference",
        RESSHIFT,
        "and run `cp -r ResShift/testdata/RealSet65 {folder}`; only metrics that need no reference are computed",
    ),
}
"""By name, in the order of listings."""

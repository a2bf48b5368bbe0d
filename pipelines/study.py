"""A study: a training with different settings and seeds, measured on the same images, compared as declared.

`make study` does the runs of scales/study.yaml that docs/study lacks; a stopped run resumes. All it makes is in study/.
Only figures go to docs/study, from which `study_report` writes docs/variants.md.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
import yaml
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines import executor, study_report, tracking
from pipelines.stage import run as run_stage
from pipelines.study_report import RESULTS
from pipelines.sweep import apply
from pipelines.train_unet import FOLDER as TRAINED
from pipelines.train_unet import fresh_denoiser, train_denoiser
from pipelines.training import LMDB, WEIGHTS, finish
from upsr.commands.scale import merge
from upsr.config import Params, Section, parse, read_yaml
from upsr.data.benchmarks import Benchmark, locate, open_benchmark
from upsr.data.datasets import PatchDataset
from upsr.degradation.second_order import SecondOrder, build_degradation
from upsr.evaluation.metrics import Row
from upsr.evaluation.runs import EvaluationRun, evaluate
from upsr.evaluation.spread import all_devices
from upsr.files import DataError, atomic, read_json, sha256, whole_folder
from upsr.images import encode_png, read_rgb, to_image, to_tensor, write
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.pretrained import FILE, weights_file
from upsr.training.unet_objective import build_unet_objective

PLAN = Path("scales/study.yaml")
FOLDER = Path("study")
DECISIVE = ("scale", "seed", "degradation", "unet", "diffusion", "uncertainty", "train", "train_unet", "evaluate")
"""The sections that a run's figures depend on."""
Positive = Annotated[int, Field(gt=0)]


class Question(Section):
    """Comparisons that answer one question, declared before any result is seen."""

    asks: str
    """The question, in words."""
    contrasts: Annotated[dict[str, tuple[str, str]], Field(min_length=1)]
    """Comparisons by name: the two arms whose difference is measured."""

    @property
    def arms(self) -> set[str]:
        """The arms that it compares."""
        return {arm for pair in self.contrasts.values() for arm in pair}


class Plan(Section):
    """Which settings are trained, how often, on what they are measured, and which of them are compared."""

    settings: dict[str, Any]
    """What differs from params.yaml in every run, nested as there."""
    auxiliary: str
    """g of every run: bundled weights, or a weights file."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The compared settings by name: dotted keys of params.yaml and their values."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Training seeds; every arm is trained once with each."""
    futile_after: Positive
    """Number of seeds after which an arm is trained no further, if all its contrasts are equal in `primary`."""
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Benchmarks with references, as in `evaluate.benchmarks`. Each is measured as it is (`clean`), and degraded by the
    settings' degradation (`degraded`)."""
    side: Positive
    """Side of the measured centre of an image, in LR pixels."""
    primary: Annotated[tuple[str, ...], Field(min_length=1)]
    """Metrics that decide. Holm's correction is over these, and over the others apart."""
    questions: Annotated[dict[str, Question], Field(min_length=1)]
    """The questions by name."""

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        for name, question in self.questions.items():
            for arm in question.arms - self.arms.keys():
                raise ValueError(f"questions.{name}: names the arm `{arm}`: add it to arms")
        return self

    def params(self, arm: str, seed: int) -> dict[str, Any]:
        """The settings of one run as plain values. Raises `ConfigError` for invalid ones."""
        values = read_yaml("params.yaml")
        for _ in merge(values, self.settings):
            pass
        apply(values, {**self.arms[arm], "seed": seed}, f"{PLAN}: arms.{arm}")
        if values["data"]["folder"]:
            values["data"]["folder"] = str(Path(values["data"]["folder"]).resolve())
        parse(Params, values, f"{PLAN}: arms.{arm}")
        return values


def load_plan(path: Path = PLAN) -> Plan:
    """Reads a plan. Raises `ConfigError` for an invalid one."""
    return parse(Plan, read_yaml(path), str(path))


@dataclass(frozen=True)
class Run:
    """One training of one arm."""

    arm: str
    seed: int
    settings: Mapping[str, Any]
    auxiliary: str

    @property
    def name(self) -> str:
        """The name of the run's folder and of its files of results."""
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The working directory of its stages."""
        return FOLDER / "runs" / self.name

    @property
    def inputs(self) -> dict[str, Any]:
        """What the run's figures depend on, apart from the code."""
        return {
            "settings": tracking.flatten({key: self.settings[key] for key in DECISIVE}),
            "auxiliary": sha256(weights_file(self.auxiliary))[:16],
            "data": (FOLDER / LMDB / "sha256").read_text().strip()[:16],
        }

    def is_done(self) -> bool:
        """True if docs/study has its figures, of the same data and settings.

        Settings that did not exist then do not count: they have the value that changes nothing.
        """
        path = RESULTS / f"{self.name}.json"
        if not path.is_file():
            return False
        then, now = read_json(path)["inputs"], self.inputs
        same = all(now["settings"].get(key) == value for key, value in then.pop("settings").items())
        return same and all(now[key] == value for key, value in then.items())


def remaining(plan: Plan) -> Iterator[Run]:
    """The runs to do: by question, all arms of a seed before the next seed. Reads the results so far at each run."""
    seen = set()
    for name, question in plan.questions.items():
        for number, seed in enumerate(plan.seeds):
            for arm in plan.arms:
                if arm not in question.arms or (arm, seed) in seen:
                    continue
                run = Run(arm, seed, plan.params(arm, seed), plan.auxiliary)
                if not run.is_done() and not (number >= plan.futile_after and study_report.is_futile(plan, name, arm)):
                    seen.add((arm, seed))
                    yield run


# ---- data


def prepare(plan: Plan) -> None:
    """Makes training data, metric weights and benchmarks in study/data, with the stages' own code."""
    values = plan.params(next(iter(plan.arms)), plan.seeds[0])
    wanted = {key: values[key] for key in ("scale", "data", "crop", "pack", "degradation")} | {"side": plan.side}
    made = FOLDER / "made.json"
    if not made.is_file() or read_json(made) != json.loads(json.dumps(wanted)):
        shutil.rmtree(FOLDER / "data", ignore_errors=True)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        for stage in ("download", "crop", "pack"):
            executor.run([sys.executable, "-m", f"pipelines.{stage}"], cwd=FOLDER, log=partial(_log, stage))
        made.write_text(json.dumps(wanted))
    degrade = build_degradation(parse(Params, values, str(PLAN)).degradation, values["scale"])
    for name in plan.benchmarks:
        source = open_benchmark(locate(name), values["scale"])
        for kind in study_report.KINDS:
            target = FOLDER / "data/benchmarks" / f"{source.name}-{kind}"
            if not target.is_dir():
                _crop_benchmark(source, target, plan.side, degrade if kind == "degraded" else None)


def _crop_benchmark(source: Benchmark, target: Path, side: int, degrade: SecondOrder | None) -> None:
    """Writes the centres of a benchmark's images, `side` LR pixels wide; with `degrade`, LR is made from HR.

    Raises `DataError` for an image without reference.
    """
    with whole_folder(target) as folder:
        for pair in source.pairs:
            if pair.hr is None:
                raise DataError(f"{PLAN}: benchmarks: {source.name}/{pair.name} has no HR image: use another benchmark")
            lr, hr = to_tensor(read_rgb(pair.lr)), to_tensor(read_rgb(pair.hr))
            top, left = (max(size - side, 0) // 2 for size in lr.shape[2:])
            lr = lr[:, :, top : top + side, left : left + side]
            top, left, height, width = (source.scale * size for size in (top, left, *lr.shape[2:]))
            hr = hr[:, :, top : top + height, left : left + width]
            lr = lr if degrade is None else degrade.named(hr, pair.name)[0]
            for part, image in (("HR", hr), (f"LRx{source.scale}", lr)):
                path = folder / part / f"{pair.name}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(encode_png(to_image(image)))
        how = "second-order degradation by scales/study.yaml" if degrade else f"as in {source.name}"
        (folder / "manifest.json").write_text(json.dumps({"lr": f"{how}; centres of {side} LR pixels"}))


# ---- one run


def execute(run: Run, plan: Plan, parent: str | None) -> None:
    """Trains and measures one run, and writes its figures to docs/study.

    Raises `TrainingError` where the training cannot go on, and `DataError` where anything could not be measured.
    """
    _lay_out(run)
    params = parse(Params, run.settings, run.name)
    remembered = (FOLDER / "auxiliary").resolve()
    start = time.monotonic()
    with chdir(run.folder):
        train_denoiser(params, lambda g: Remembered(g, remembered))
    trained = time.monotonic() - start
    model = run.folder / TRAINED
    names = [f"{locate(name).name}-{kind}" for name in plan.benchmarks for kind in study_report.KINDS]
    benchmarks = [open_benchmark(FOLDER / "data/benchmarks" / name, params.scale) for name in names]
    outcome = evaluate(
        EvaluationRun(
            models={"upsr": model},
            scale=params.scale,
            protocol=params.evaluate.protocol,
            metrics=params.evaluate.metrics,
            weights=FOLDER / WEIGHTS,
            seeds=params.evaluate.seeds,
            tile=params.evaluate.tile,
            images=None,
        ),
        benchmarks,
        params.evaluate.workers,
        all_devices(),
    )
    if outcome.failed or outcome.absent:
        raise DataError(f"{run.name}: not everything was measured: {outcome.failed[:1] or outcome.absent}")
    upscaler = Upscaler.from_pretrained(model)
    if run.seed == plan.seeds[0]:
        write(RESULTS / f"{run.arm}.png", sheet(upscaler, benchmarks[0].pairs[0].lr))
    log = pd.read_csv(model / "log.csv")
    facts = {
        "arm": run.arm,
        "seed": run.seed,
        "inputs": run.inputs,
        "commit": tracking.git_commit(),
        "device": tracking.device_name(),
        "benchmarks": {b.name: b.digest for b in benchmarks},
        "kappa": torch.as_tensor(upscaler.diffuser.denoiser.process.kappa).item(),  # type: ignore[union-attr]
        "training_seconds": round(trained),
        "mix": log[["step", "mix"]].to_numpy().tolist() if "mix" in log else None,
        "common": common_numbers(params),
    }
    _keep(run, outcome.rows, facts, parent)
    finish(model)  # not before: an interrupted measurement must not repeat the training


class Remembered(nn.Module):
    """g, whose outputs are kept in a folder: the arms of a seed see the same images, and g is half of a step's time."""

    def __init__(self, g: nn.Module, folder: Path) -> None:
        super().__init__()
        self.g, self.folder = g, folder
        state = (value for _, value in sorted(g.state_dict().items()))
        self.digest = _digest(state)

    def forward(self, lr: Tensor) -> Tensor:
        """g(lr), (B, 3, h, w) in [0, 1] -> (B, 3, s·h, s·w)."""
        bf16 = torch.is_autocast_enabled(lr.device.type)
        path = self.folder / f"{self.digest}-{'bf16' if bf16 else 'fp32'}-{_digest([lr])}.safetensors"
        if path.is_file():
            return load_file(path)["g_y"].to(lr.device)
        g_y = self.g(lr)
        with atomic(path) as temporary:
            save_file({"g_y": g_y.contiguous()}, temporary)
        return g_y


def sheet(upscaler: Upscaler, path: Path) -> np.ndarray:
    """An LR image enlarged, the result, and the noise weight w by timestep, side by side: (H, W, 3) uint8."""
    lr = to_tensor(read_rgb(path))
    done = upscaler.upscale(lr)
    weights = [w.expand(-1, 3, -1, -1) for w in list(done.weights.values()) or [done.maps["weight"]]]
    parts = [F.interpolate(lr, done.image.shape[2:], mode="nearest"), done.image, *weights]
    return np.concatenate([to_image(part) for part in parts], axis=1)


def common_numbers(params: Params) -> dict[str, str]:
    """Digests of the initial weights, and of the first batch's images, degradations, timesteps and noise.

    Arms are compared fairly if these are equal for a seed; networks of other shapes have other weights.
    """
    torch.manual_seed(params.seed)
    denoiser = fresh_denoiser(params)
    dataset = PatchDataset(FOLDER / LMDB, params.train_unet.patch, params.seed)
    device = all_devices()[0]  # a GPU draws other noise
    objective = build_unet_objective(params, build_atd(params.atd, params.scale), FOLDER / WEIGHTS).to(device)
    batch = torch.stack([dataset[i] for i in range(params.train_unet.batch)]).to(device)
    lr, hr, position, noise, *_ = objective.draw(batch, (params.seed, 0))
    return {
        "weights": _digest(denoiser.network.state_dict().values()),
        "draws": _digest([lr, hr, position, noise]),
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _lay_out(run: Run) -> None:
    """The run's working directory: its settings, the shared data, and g where its stage would have put it."""
    (run.folder / "models").mkdir(parents=True, exist_ok=True)
    (run.folder / "params.yaml").write_text(yaml.safe_dump(dict(run.settings), sort_keys=False))
    links = {"data": FOLDER / "data", f"models/atd/{FILE}": weights_file(run.auxiliary)}
    for link, target in links.items():
        path = run.folder / link
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target.resolve())


def _keep(run: Run, rows: list[Row], facts: dict[str, Any], parent: str | None) -> None:
    """Writes the figures of each image and the facts to docs/study, and both to MLflow."""
    RESULTS.mkdir(exist_ok=True)
    table = pd.DataFrame(rows).drop(columns=["model", "seconds"])
    with atomic(RESULTS / f"{run.name}.csv") as temporary:
        table.round(5).to_csv(temporary, index=False)
    means = table.drop(columns="picture").groupby("benchmark").mean()
    with tracking.start("study", run.name, dict(run.settings), {"arm": run.arm}, parent=parent) as tracker:
        tracker.metrics({f"{b}/{m}": float(v) for b, row in means.iterrows() for m, v in row.items()})
        tracker.artifact(RESULTS / f"{run.name}.csv")
        tracker.artifact(run.folder / TRAINED / "log.csv")
    with atomic(RESULTS / f"{run.name}.json") as temporary:  # last: it says that the run is done
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(run.folder / TRAINED / "previews", ignore_errors=True)


# ---- all runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure what scales/study.yaml plans and docs/study lacks.")
    parser.add_argument("run", nargs="?", help="one run, such as residual-0 (default: all that remain)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with one thread")
    parser.add_argument("--report", action="store_true", help="write docs/variants.md from the figures so far, and end")
    parser.add_argument("--parent", help=argparse.SUPPRESS)
    options = parser.parse_args()
    plan = load_plan()
    if options.report:
        study_report.write(plan)
        return
    os.environ |= {"PYTHONPATH": str(Path.cwd()), "DVC_ROOT": str(Path.cwd())}  # the stages run in study/
    if options.run:
        torch.set_num_threads(1)
        arm, _, seed = options.run.rpartition("-")
        if arm not in plan.arms or not seed.isdecimal():
            raise ValueError(
                f"{PLAN}: no run `{options.run}`: name an arm and a seed, such as {next(iter(plan.arms))}-0"
            )
        execute(Run(arm, int(seed), plan.params(arm, int(seed)), plan.auxiliary), plan, options.parent)
        return
    prepare(plan)
    os.environ |= {"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {}
    with _all_runs(plan) as tracker, ThreadPoolExecutor(options.jobs) as pool:
        parent = ["--parent", tracker.run_id] if tracker.run_id else []
        command = [sys.executable, "-m", "pipelines.study", *parent]
        waiting = set()
        try:
            for run in remaining(plan):  # one by one: what remains depends on the figures so far
                waiting.add(pool.submit(executor.run, [*command, run.name], cwd=Path(), log=partial(_log, run.name)))
                if len(waiting) >= options.jobs:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    _finish(done, plan, tracker)
            _finish(wait(waiting).done, plan, tracker)
        except BaseException:
            executor.stop()  # a signal or a failed run: the others save their state and end
            raise


@contextmanager
def _all_runs(plan: Plan) -> Iterator[tracking.Tracker]:
    """The study's MLflow run, the parent of its runs. A resumed study continues the same."""
    id_file = FOLDER / "run_id"
    run_id = id_file.read_text() if id_file.is_file() else None
    arms = {name: json.dumps(values) for name, values in plan.arms.items()}
    with tracking.start("study", "study", {"arms": arms}, {}, run_id=run_id) as tracker:
        tracker.metrics({"arms": float(len(plan.arms))})  # reaches the store, so that the run has an id
        if tracker.run_id:
            id_file.write_text(tracker.run_id)
        yield tracker


def _finish(done: Iterable[Future[None]], plan: Plan, tracker: tracking.Tracker) -> None:
    """Raises what a run raised; writes the report, and sends its plots to MLflow."""
    for future in done:
        future.result()
    for path in study_report.write(plan):
        tracker.artifact(path)


def _log(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    run_stage(main)

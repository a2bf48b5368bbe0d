"""Training: it learns, it survives, and what it cannot go on with it says."""

import csv
import math
import multiprocessing
import os
import re
import resource
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import SHARED, params, save_model
from services import PATIENCE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines import train_atd, train_unet
from pipelines.train_unet import fresh_denoiser, warn_of_epsilon
from pipelines.training import validation
from upsr import images
from upsr.config import ConfigError, Params, Select
from upsr.data.datasets import PatchDataset
from upsr.data.lmdb_store import pack
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import build_degradation
from upsr.diffusion.denoiser import Denoiser, build_denoiser
from upsr.evaluation.metrics import Metrics
from upsr.evaluation.protocol import PROTOCOLS
from upsr.files import DataError
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.models.widen import widen_atd, widen_unet
from upsr.pretrained import FILE, CheckpointError, load_pretrained, save_pretrained
from upsr.training import checkpoints
from upsr.training.atd_objective import AtdObjective
from upsr.training.ema import Ema
from upsr.training.initial import initialise
from upsr.training.loop import fit, learning_rate
from upsr.training.memory import memory_errors_in_one_line, micro_batch_size
from upsr.training.pairs import Pairs
from upsr.training.perceptual import ALEX, Dists, Lpips, PerceptualLoss, sharper_losses
from upsr.training.state import TrainingError, clear, save_state
from upsr.training.unet_objective import OFFSETS, UnetObjective
from upsr.training.validation import Validation, held_out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few smooth pictures, packed."""
    folder = tmp_path_factory.mktemp("store")
    y, x = np.mgrid[0:48, 0:48] / 48
    for i in range(5):
        waves = [np.sin(3 * x + i), np.cos(4 * y * x + i), np.sin(5 * y - i)]
        images.write(folder / "in" / f"{i}.png", ((np.stack(waves, -1) + 1) * 127).astype(np.uint8))
    pack(folder / "in", folder / "lmdb", "png")
    return folder / "lmdb"


def atd_objective(p: Params, pool: int = 4) -> AtdObjective:
    return AtdObjective(
        Pairs(build_degradation(p.degradation, 4), PairPool(pool, p.train_atd.batch)), PerceptualLoss(0, "proper", "")
    )


class Run:
    """One training of the tiny ATD in a folder, to be started again and again."""

    def __init__(self, store: Path, folder: Path, pool: int = 4, **changes: Any) -> None:
        changes["train"] = {"select": {"psnr": 1, "lpips": 0}} | changes.get("train", {})
        self.params, self.folder, self.store, self.pool = params(**changes), folder, store, pool
        pair = torch.full((1, 3, 8, 8), 0.3), torch.full((1, 3, 32, 32), 0.4)
        self.validate: Any = Validation([pair], lambda atd, lr: atd(lr), None)
        folder.mkdir(exist_ok=True)

    def __call__(self, identity: str = "same", objective: nn.Module | None = None, stop: Any = None) -> nn.Module:
        torch.manual_seed(0)
        return fit(
            build_atd(self.params.atd, 4),
            objective or atd_objective(self.params, self.pool),
            PatchDataset(self.store, 32, seed=0),
            recipe=self.params.train_atd,
            train=self.params.train,
            seed=0,
            folder=self.folder,
            identity={"settings": {"name": identity}},
            validate=self.validate,
            save=lambda path, atd: save_pretrained(
                path, {"atd": atd.state_dict()}, {"scale": 4, "atd": self.params.atd}
            ),
            report=lambda step, values: stop(step) if stop and "loss" in values else None,
            preview=lambda step, network: None,
        )

    def log(self) -> list[list[str]]:
        return list(csv.reader((self.folder / "log.csv").open()))


class Killed(Exception):
    pass


def kill_at(when: int):
    def stop(step: int) -> None:
        if step == when:
            raise Killed

    return stop


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns(store: Path, tmp_path: Path):
    recipe = {"steps": 40, "lr": 2e-3, "ema": 0.5}
    run = Run(store, tmp_path, train_atd=recipe, train={"log_every": 10, "save_every": 100})
    run()
    header, *rows = run.log()
    losses = [float(row[header.index("loss")]) for row in rows]
    assert [row[0] for row in rows] == ["10", "20", "30", "40"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_run_that_was_killed_ends_as_one_that_was_not(store: Path, tmp_path: Path, when: int):
    train = {"log_every": 1, "save_every": 1}
    whole, cut = (Run(store, tmp_path / name, train=train) for name in ("whole", "cut"))
    expected = whole()
    with pytest.raises(Killed):
        cut(stop=kill_at(when))
    assert same(cut(), expected)
    assert cut.log() == whole.log()


def test_logs_continue_in_the_middle_of_an_interval(store: Path, tmp_path: Path):
    """A state saved between two rows of the log carries what the next row is the mean of."""
    train = {"log_every": 4, "save_every": 3}
    recipe = {"steps": 8}
    whole, cut = (Run(store, tmp_path / name, train=train, train_atd=recipe) for name in ("whole", "cut"))
    expected = whole()
    with pytest.raises(Killed):
        cut(stop=kill_at(8))
    assert same(cut(), expected)
    assert cut.log() == whole.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(store: Path, tmp_path: Path, number: int):
    run = Run(store, tmp_path / "a", train={"log_every": 1, "save_every": 100})
    with pytest.raises(SystemExit) as end:
        run(stop=lambda step: os.kill(os.getpid(), number) if step == 2 else None)
    assert end.value.code == 128 + number
    assert [p.name for p in run.folder.glob("state-*")] == ["state-00000002.pt"]
    assert same(run(), Run(store, tmp_path / "b", train={"log_every": 1, "save_every": 100})())


def test_the_last_two_states_are_kept_and_a_torn_one_is_passed_over(store: Path, tmp_path: Path, capsys):
    run = Run(store, tmp_path)
    expected = run()
    states = sorted(tmp_path.glob("state-*.pt"))
    assert [p.name for p in states] == ["state-00000003.pt", "state-00000004.pt"]
    with pytest.raises(CheckpointError, match=r"state-00000004\.pt: a training state, not a model: give the weights\."):
        load_pretrained(states[-1])
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    assert same(run(), expected)
    assert "state-00000004.pt: not a complete training state: skipped" in capsys.readouterr().out


def test_the_state_of_another_training_is_refused_with_the_key(store: Path, tmp_path: Path):
    run = Run(store, tmp_path)
    run()
    with pytest.raises(TrainingError, match=r"settings\.name: same -> other.*--fresh"):
        run(identity="other")
    clear(tmp_path)
    run(identity="other")


@pytest.mark.parametrize("part", ["network", "ema", "optimizer", "pools", "record", "step", "checkpoints", "identity"])
def test_a_state_that_somebody_changed_is_one_line(store: Path, tmp_path: Path, capsys, part: str):
    """It is refused, and without an identity passed over as a torn one is."""
    run = Run(store, tmp_path)
    expected = run()
    first, newest = sorted(tmp_path.glob("state-*.pt"))
    save_state(newest, torch.load(newest) | {part: "seven"})
    if part == "identity":
        assert same(run(), expected)
        assert "state-00000004.pt: a training state of no training: skipped" in capsys.readouterr().out
        return
    with pytest.raises(TrainingError, match=r"state-00000004\.pt: a damaged training state .*: remove it"):
        run()
    newest.unlink()
    assert first.is_file() and same(run(), expected)


def killed_in_training(store: Path, folder: Path) -> None:
    run = Run(store, folder, train={"log_every": 1, "workers": 1})
    with pytest.raises(Killed) as error:
        run(stop=kill_at(2))
    assert error.traceback and not multiprocessing.active_children()


def test_an_error_leaves_no_worker_for_which_python_would_wait(store: Path, tmp_path: Path):
    # A process of its own: where a Prefect flow ran before, every forked process ends with an error of Prefect's.
    process = multiprocessing.get_context("spawn").Process(target=killed_in_training, args=(store, tmp_path))
    process.start()
    process.join(PATIENCE)
    process.kill()
    assert process.exitcode == 0


class Broken(AtdObjective):
    """Its loss is no number from the first step on."""

    def loss(self, atd: nn.Module, lr: Tensor, hr: Tensor) -> Any:
        loss, values = super().loss(atd, lr, hr)
        return loss * float("nan"), values


def test_steps_without_a_finite_loss_change_nothing_and_end_the_run(store: Path, tmp_path: Path):
    run = Run(store, tmp_path, train={"max_bad_steps": 3, "log_every": 1})
    p = run.params
    objective = Broken(Pairs(build_degradation(p.degradation, 4), PairPool(0, 1)), PerceptualLoss(0, "proper", ""))
    with pytest.raises(TrainingError, match=r"not finite 3 times in a row"):
        run(objective=objective)
    torch.manual_seed(0)
    state = torch.load(max(tmp_path.glob("state-*.pt")), weights_only=True)
    fresh = build_atd(p.atd, 4).state_dict()
    assert all(torch.equal(state["network"][k], v) for k, v in fresh.items())
    assert all(torch.equal(state["ema"][k], v) for k, v in fresh.items())
    assert state["record"]["bad"] == 2


class OnceBroken(AtdObjective):
    """Its loss is no number where the batch is that of the second step."""

    step = 0

    def draw(self, hr: Tensor, seed: Any, first: int = 0) -> tuple[Tensor, ...]:
        self.step = seed[1]
        return super().draw(hr, seed, first)

    def loss(self, atd: nn.Module, lr: Tensor, hr: Tensor) -> Any:
        loss, values = super().loss(atd, lr, hr)
        return loss * (float("nan") if self.step == 1 else 1), values


def test_a_skipped_step_moves_neither_rate_nor_average_and_leaves_its_batch(store: Path, tmp_path: Path, capsys):
    run = Run(store, tmp_path, train={"log_every": 1}, train_atd={"warmup": 4})
    p = run.params
    pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 1))
    run(objective=OnceBroken(pairs, PerceptualLoss(0, "proper", "")))
    header, *rows = run.log()
    assert [float(row[header.index("lr")]) / p.train_atd.lr for row in rows] == pytest.approx([0.25, 0.5, 0.5, 0.75])
    assert [row[header.index("loss")] == "nan" for row in rows] == [False, True, False, False]
    assert [row[header.index("bad_steps")] for row in rows] == ["0.0", "1.0", "1.0", "1.0"]
    assert "step 2: loss or gradient not finite: skipped" in capsys.readouterr().out
    kept = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    hr = torch.stack([PatchDataset(store, 32, seed=0)[i] for i in (2, 3)])  # the samples of step 2
    assert kept["step"] == 2
    assert all(torch.equal(a, b) for a, b in zip(kept["batch"], pairs(hr, (0, 1)), strict=True))


class Reads(TorchDispatchMode):
    """Notes before which optimizer step something was read back from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.at = 0, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.steps += function is torch.ops.aten._fused_adamw_.tensor_lr
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.at.add(self.steps)
        return function(*args, **(kwargs or {}))


def test_nothing_is_read_back_from_the_device_but_where_it_logs(store: Path, tmp_path: Path):
    every = {"log_every": 4, "save_every": 4, "validate_every": 4}
    with Reads() as reads:
        Run(store, tmp_path, train=every, train_atd={"steps": 8, "batch": 4})()
    assert reads.steps == 8
    assert reads.at - {0} == {4, 8}  # before the first step, what is made once


def test_accumulated_parts_count_as_one_batch(store: Path, tmp_path: Path):
    one, two = (
        Run(store, tmp_path / str(micro), pool=0, train_atd={"batch": 4, "micro_batch": micro}) for micro in (4, 2)
    )
    for a, b in zip(one().parameters(), two().parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_recomputed_activations_change_nothing(store: Path, tmp_path: Path):
    plain, short = (Run(store, tmp_path / str(on), train={"checkpointing": on}) for on in (False, True))
    assert same(short(), plain())


def test_the_networks_compile_to_one_graph_without_a_warning():
    p = params()
    atd, unet = build_atd(p.atd, 4), build_unet(p.unet, 4)
    unet_inputs = (torch.rand(1, 48, 32, 32), torch.tensor([1]), torch.rand(1, 96, 32, 32))
    for network, inputs in ((atd, (torch.rand(1, 3, 16, 16),)), (unet, unet_inputs)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Guards may run slower on Python")  # of Python 3.13.0 alone
            compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(*inputs)
        assert torch.allclose(compiled, network(*inputs), atol=1e-6)


def test_out_of_memory_names_the_batch_and_the_key():
    with (
        pytest.raises(
            TrainingError, match=r"micro_batch: 8 and patches of 256×256.*train_unet\.micro_batch.*train\.checkpointing"
        ),
        memory_errors_in_one_line("train_unet", micro_batch=8, patch=256),
    ):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="size"), memory_errors_in_one_line("train_unet", 8, 256):
        torch.ones(2) + torch.ones(3)


def fitting(store: Path, folder: Path, spare: int, found: Any) -> None:
    """Puts into `found` the micro-batch of a process that may allocate only `spare` more bytes."""
    torch.set_num_threads(1)
    run = Run(store, folder, train_atd={"batch": 16, "micro_batch": "auto", "patch": 256})
    accelerator, atd, objective = Accelerator(cpu=True), build_atd(run.params.atd, 4), atd_objective(run.params)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    size = micro_batch_size(run.params.train_atd, atd, objective, accelerator)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found.put(size)


def test_auto_takes_what_the_memory_holds(store: Path, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    sizes = []
    for spare in (2**34, 400 * 2**20):
        found = context.Queue()
        process = context.Process(target=fitting, args=(store, tmp_path, spare, found))
        process.start()
        sizes.append(found.get(timeout=PATIENCE))
        process.join(PATIENCE)
    assert sizes[0] == 16
    assert sizes[1] in (2, 4, 8), f"{sizes[1]}: none, or all of what did not fit"


def test_auto_ends_bit_for_bit_as_the_number_that_it_chooses(store: Path, tmp_path: Path, capsys):
    auto, number = (
        Run(store, tmp_path / str(size), train_atd={"batch": 4, "micro_batch": size}) for size in ("auto", 4)
    )
    assert same(auto(), number())
    assert capsys.readouterr().out.count("batch 4 = 1 processes × 1 micro-batches × 4 samples\n") == 2


# Checkpoints


def test_the_best_checkpoint_is_the_model_and_the_table_holds_all(store: Path, tmp_path: Path):
    """The rule counts LPIPS alone; the figures are such that the second of four is the best."""
    figures = iter([0.5, 0.1, 0.2, 0.3])
    run = Run(store, tmp_path, train={"validate_every": 1, "keep": 2, "select": {"psnr": 0, "lpips": -1}})
    run.validate = lambda network, accelerator: {"psnr": 20.0, "lpips": next(figures)}
    run()
    table = [(row["step"], row["score"]) for row in csv.DictReader((tmp_path / "checkpoints.csv").open())]
    assert table == [
        ("1", "-0.5"),
        ("2", "-0.1"),
        ("3", "-0.2"),
        ("4", "-0.3"),
    ]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"0000000{step}{raw}.safetensors" for step in (2, 3) for raw in ("", "_raw")]
    for name in ("", "_raw"):
        chosen = load_pretrained(tmp_path / f"weights{name}.safetensors").parts["atd"]
        second = load_pretrained(tmp_path / "checkpoints" / f"00000002{name}.safetensors").parts["atd"]
        assert all(torch.equal(chosen[key], second[key]) for key in second)


def test_a_checkpoint_whose_figures_are_no_numbers_loses():
    select = Select(psnr=0.1, lpips=-1)
    rows = [{"step": 1.0, "psnr": 20.0, "lpips": 0.5}, {"step": 2.0, "psnr": math.nan, "lpips": 0.1}]
    assert checkpoints.best([row | {"score": checkpoints.score(row, select)} for row in rows], 2) == [1, 2]


@pytest.mark.parametrize("scale", [2, 4])
def test_validation_measures_held_out_pictures(tmp_path: Path, scale: int):
    hr = torch.rand(40, 48, 3)
    for name in "ab":
        images.write(tmp_path / f"{name}.png", (hr * 255).byte().numpy())
    degrade = build_degradation(params().degradation, scale)
    pairs = held_out([tmp_path / "a.png"], degrade, 32)
    assert [tuple(x.shape) for pair in pairs for x in pair] == [(1, 3, 32 // scale, 32 // scale), (1, 3, 32, 32)]
    right = pairs[0][1]
    assert torch.equal(right[0, :, 0, 0], (hr[4, 8] * 255).byte() / 255)
    again = held_out([tmp_path / "b.png", tmp_path / "a.png"], degrade, 32)
    assert torch.equal(again[1][0], pairs[0][0])
    assert not torch.equal(again[0][0], pairs[0][0])
    figures = Validation(pairs, lambda network, _: (right + 1 / 255).clamp(0, 1), None)(nn.Identity(), Accelerator())
    assert figures["psnr"] == pytest.approx(48.13, abs=0.2)


def test_too_few_validation_images_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As where `data.on_corrupt: skip` left one out."""
    monkeypatch.chdir(tmp_path)
    p = params(train={"select": {"psnr": 1, "lpips": 0}})
    arguments = build_degradation(p.degradation, 4), p.train, p.train_atd, lambda network, lr: network(lr)
    images.write(tmp_path / "data/validation/a.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"data/validation: has 1 images, but train\.validate_pictures is 2: lower it"):
        validation(*arguments)
    images.write(tmp_path / "data/validation/b.png", np.zeros((40, 40, 3), np.uint8))
    assert len(validation(*arguments)[0].pairs) == 2


@pytest.fixture
def own_precision():
    """Accelerate settles the precision once per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_precision")
def test_bf16_trains(store: Path, tmp_path: Path):
    network = Run(store, tmp_path, train={"precision": "bf16"})()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())


def test_the_rate_is_a_function_of_the_step():
    recipe = params(train_atd={"lr": 1.0, "warmup": 4, "milestones": [10, 20]}).train_atd
    assert [learning_rate(s, recipe) for s in (0, 1, 3, 9, 10, 19, 20)] == [0.25, 0.5, 1, 1, 0.5, 0.5, 0.25]


def test_what_a_variant_learns_has_its_own_learning_rate(store: Path, tmp_path: Path):
    """AdamW moves a weight by about its learning rate a step: `lr_scale` decides how far `mix` can get."""
    moved = {}
    for scale in (1.0, 100.0):
        p = params(
            uncertainty={"variant": "edge_frequency", "lr_scale": scale},
            train={"select": {"psnr": 1, "lpips": 0}, "save_every": 10},
            train_unet={"steps": 4, "lr": 1e-3},
        )
        torch.manual_seed(0)
        denoiser = fresh_denoiser(p)
        pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 2))
        folder = tmp_path / str(scale)
        folder.mkdir()
        fit(
            denoiser,
            UnetObjective(pairs, PerceptualLoss(0, "proper", ""), build_atd(p.atd, 4), 4),
            PatchDataset(store, 32, seed=0),
            recipe=p.train_unet,
            train=p.train,
            seed=0,
            folder=folder,
            identity={},
            validate=Validation([], lambda network, lr: lr, None),
            save=lambda path, network: save_pretrained(path, {"unet": network.network.state_dict()}, {}),
            report=lambda step, values: None,
            preview=lambda step, network: None,
            lr_scales={"uncertainty": scale},
        )
        moved[scale] = abs(denoiser.uncertainty.mix.item())
    assert 0 < moved[1.0] < 0.005
    assert 50 * moved[1.0] < moved[100.0] < 0.5


def test_a_start_from_another_variant_is_named(tmp_path: Path, capsys):
    p = params(uncertainty={"variant": "residual"})
    path = save_model(tmp_path, p) / FILE
    for variant, said in (("isotropic", True), ("residual", False)):
        initialise(build_unet(p.unet, 4), "unet", p.unet, 4, str(path), widen_unet, variant)
        line = capsys.readouterr().out
        assert line.startswith(f"unet: starts from {path}")
        assert ("trained with `residual` noise, this run's is `isotropic`" in line) is said


@pytest.mark.parametrize(
    ("predict", "steps", "warns"), [("epsilon", 5, True), ("epsilon", 1000, False), ("x0", 5, False)]
)
def test_predicting_noise_in_few_steps_is_warned_of(predict: str, steps: int, warns: bool, capsys):
    warn_of_epsilon(params(diffusion={"predict": predict, "steps": steps}).diffusion)
    assert ("an error of ε is 124 times larger in x̂0 at t = 5" in capsys.readouterr().out) is warns


def test_the_average_follows_by_its_decay():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = Ema(network, 0.9)
    nn.init.ones_(network.weight)
    for expected in (0.1, 0.19):
        ema.update(network, skip=torch.tensor(False))
        assert ema.network.weight.item() == pytest.approx(expected)


# The denoiser's objective


def denoiser(p: Params) -> Denoiser:
    return build_denoiser(build_unet(p.unet, 4), unet=p.unet, diffusion=p.diffusion, uncertainty=p.uncertainty, scale=4)


# The tiny network is 16 channels wide, less than the 48 that its noise has: it can learn only a part of ε.
@pytest.mark.parametrize(("predict", "left"), [("x0", 0.5), ("epsilon", 0.97)])
@pytest.mark.parametrize(
    ("variant", "branches"), [("isotropic", 1), ("residual", 2), ("edge_frequency", 1), ("dynamic", 2)]
)
def test_the_denoiser_learns_one_picture(predict: str, left: float, variant: str, branches: int):
    torch.manual_seed(0)
    p = params(
        diffusion={"predict": predict, "steps": 5}, uncertainty={"variant": variant}, unet={"branches": branches}
    )
    pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 1))
    atd = build_atd(p.atd, 4)
    objective = UnetObjective(pairs, PerceptualLoss(0, "proper", ""), atd, 4)
    network = denoiser(p)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    hr = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    drawn = objective.draw(hr, (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, objective.draw(hr, (0, 0)), strict=True))
    losses = []
    for _ in range(30):
        loss, values = objective.loss(network, *drawn)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < left * losses[0]
    assert 0.4 <= values["weight"] <= 1
    assert all(weight.grad is None for weight in atd.parameters())


# LPIPS


@torch.inference_mode()
def test_lpips_and_dists_as_losses_are_pyiqas_metrics(weights: Path):
    folder = SHARED / "lpips_example"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the LPIPS authors' pictures are absent")
    reference, a, b = (images.to_tensor(images.read_rgb(folder / f"ex_{n}.png")) for n in ("ref", "p0", "p1"))
    names = {"lpips-vgg": Lpips(weights), "lpips": Lpips(weights, ALEX), "dists": Dists(weights)}
    metric = Metrics(list(names), weights, PROTOCOLS["basicsr"], 4, torch.device("cpu"))
    for x in (a, b):
        theirs = metric(x, reference)
        assert {name: ours(x, reference).item() for name, ours in names.items()} == pytest.approx(
            {name: theirs[name] for name in names}, abs=1e-4
        )


def test_the_official_range_is_another_loss(weights: Path):
    x, y = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1
    proper, official = (PerceptualLoss(0.5, mode, weights)(x, y) for mode in ("proper", "official"))
    assert proper.item() == pytest.approx(0.5 * Lpips(weights)((x + 1) / 2, (y + 1) / 2).item())
    assert official.item() == pytest.approx(0.5 * Lpips(weights)(x, y).item())


@pytest.mark.parametrize("key", ["lpips_alex_weight", "dists_weight"])
def test_a_sharper_loss_is_added_and_logged_by_its_name(weights: Path, key: str):
    torch.manual_seed(0)
    p = params(train_unet={key: 0.5, "lpips_share": 0.5, "patch": 64})
    pairs, atd, network = Pairs(build_degradation(p.degradation, 4), PairPool(0, 2)), build_atd(p.atd, 4), denoiser(p)
    plain = UnetObjective(pairs, PerceptualLoss(0, "proper", ""), atd, 4)
    more = sharper_losses(p.train_unet, "proper", weights)
    sharper = UnetObjective(pairs, PerceptualLoss(0, "proper", ""), atd, 4, lpips_share=0.5, more=more)
    hr = (torch.rand(2, 3, 64, 64) * 255).byte()
    drawn = plain.draw(hr, (0, 0))
    loss, values = sharper.loss(network, *drawn)
    name = key.removesuffix("_weight")
    assert values.keys() - plain.loss(network, *drawn)[1].keys() == {name}
    assert loss.item() == pytest.approx(plain.loss(network, *drawn)[0].item() + values[name].item(), rel=1e-5)
    assert values[name].item() > 0.05, "the weight times the distance of an image that is nothing like its target"
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)
    unmoved = sharper.loss(network, *drawn[:-1], torch.zeros_like(drawn[-1]))[1][name]
    assert drawn[-1].any() and unmoved.item() != values[name].item(), "it sees the images from an offset"


@pytest.mark.parametrize(
    ("key", "metric", "cut"),
    [
        ("lpips_weight", Lpips, 0),
        ("lpips_alex_weight", partial(Lpips, net=ALEX), OFFSETS - 1),
        ("dists_weight", Dists, OFFSETS - 1),
    ],
)
def test_the_smallest_patch_of_a_loss_is_all_that_its_network_can_see(
    weights: Path, key: str, metric: Callable[[Path], nn.Module], cut: int
):
    small = {"patch": 4, "lpips_weight": 0, key: 0.5}
    with pytest.raises(ConfigError, match=f"patch 4 must be at least .* set train_unet.{key}: 0") as error:
        params(unet={"channel_mult": [1]}, train_unet=small)
    least = int(re.findall(r"at least (\d+)", str(error.value))[0]) - cut
    assert metric(weights)(torch.rand(1, 3, least, least), torch.rand(1, 3, least, least)).isfinite().all()
    less = torch.rand(1, 3, least - 1, least - 1)
    with pytest.raises(RuntimeError):
        metric(weights)(less, less)


def test_missing_weights_of_a_loss_are_named(tmp_path: Path):
    for metric, key in (
        (Lpips, "lpips_weight"),
        (partial(Lpips, net=ALEX), "lpips_alex_weight"),
        (Dists, "dists_weight"),
    ):
        with pytest.raises(FileNotFoundError, match=f"{key}: 0"):
            PerceptualLoss(0.5, "proper", tmp_path, metric)
        PerceptualLoss(0, "proper", tmp_path, metric)


# Starting from other weights


def test_a_training_starts_from_a_weights_file_that_fits(tmp_path: Path, capsys):
    p = params()
    torch.manual_seed(1)
    theirs, ours = build_atd(p.atd, 4), build_atd(p.atd, 4)
    save_pretrained(tmp_path / "weights.safetensors", {"atd": theirs.state_dict()}, {"scale": 4, "atd": p.atd})
    changed = p.atd.model_copy(update={"lpips_weight": 5.0})  # how it is trained does not matter
    initialise(ours, "atd", changed, 4, str(tmp_path), widen_atd)
    assert same(ours, theirs)
    initialise(build_unet(p.unet, 4), "unet", p.unet, 4, str(tmp_path), widen_unet)
    assert "has no unet" in capsys.readouterr().out
    wide = params(atd={"dim": 24}).atd
    with pytest.raises(CheckpointError, match=r"another network \(atd\.dim: 16 -> 24\)"):
        initialise(build_atd(wide, 4), "atd", wide, 4, str(tmp_path), widen_atd)
    with pytest.raises(CheckpointError, match=r"scale: 4 -> 2"):
        initialise(build_atd(p.atd, 2), "atd", p.atd, 2, str(tmp_path), widen_atd)
    with pytest.raises(CheckpointError, match="no such weights file"):
        initialise(ours, "atd", p.atd, 4, str(tmp_path / "absent.safetensors"), widen_atd)


@pytest.mark.parametrize("name", ["atd", "unet"])
def test_a_start_that_a_training_overwrites_is_refused_by_both(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    p = params(train={"init": f"models/{name}"}, atd={"lpips_weight": 0}, train_unet={"lpips_weight": 0})
    monkeypatch.chdir(tmp_path)
    for folder in train_atd.FOLDER, train_unet.FOLDER:
        save_model(folder, p)
    message = rf"^train\.init: models/{name}/.*: train_{name} overwrites it: copy it to another folder$"
    with pytest.raises(CheckpointError, match=message):
        train_atd.train_atd(p, train_atd.own_recipe(p.train_atd), p.scale, train_atd.FOLDER, None)
    with pytest.raises(CheckpointError, match=message):
        train_unet.train_denoiser(p)


def test_a_network_of_twice_the_width_starts_as_the_same_function(tmp_path: Path, capsys):
    p, wide = params(), params(atd={"dim": 32}, unet={"dim": 32})
    atd, unet = build_atd(p.atd, 4), build_unet(p.unet, 4)
    parts = {"atd": atd.state_dict(), "unet": unet.state_dict()}
    save_pretrained(tmp_path / "weights.safetensors", parts, {"scale": 4, "atd": p.atd, "unet": p.unet})
    wide_atd, wide_unet = build_atd(wide.atd, 4), build_unet(wide.unet, 4)
    initialise(wide_atd, "atd", wide.atd, 4, str(tmp_path), widen_atd)
    initialise(wide_unet, "unet", wide.unet, 4, str(tmp_path), widen_unet)
    assert capsys.readouterr().out.count("widened from 16 to 32") == 2
    lr = torch.rand(1, 3, 16, 16)
    assert torch.allclose(wide_atd(lr), atd(lr), atol=1e-5)
    inputs = torch.rand(1, 48, 8, 8), torch.tensor([1]), torch.rand(1, 96, 8, 8)
    assert torch.allclose(wide_unet(*inputs), unet(*inputs), atol=1e-5)

"""A student and its teacher: the same x_T, the teacher's image as a target, and what a training keeps and refuses."""

import copy
import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import params, save_model
from torch import Tensor, nn

from pipelines.train_unet import fresh_denoiser, train_denoiser
from upsr import images
from upsr.config import ConfigError, Params
from upsr.data.lmdb_store import pack
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import build_degradation
from upsr.diffusion.denoiser import Denoiser
from upsr.inference.upscaler import Upscaler
from upsr.models.atd import build_atd
from upsr.pretrained import FILE, CheckpointError, Pretrained, load_pretrained, save_pretrained
from upsr.training.pairs import Pairs
from upsr.training.perceptual import PerceptualLoss
from upsr.training.state import TrainingError
from upsr.training.teacher import load_teacher, move_timesteps, prepare_student
from upsr.training.unet_objective import UnetObjective

EVERY = ["isotropic", "residual", "edge_frequency", "dynamic"]


class Nearest(nn.Module):
    """g: far from bicubic, so that neither can stand for the other."""

    def forward(self, lr: Tensor) -> Tensor:
        return 1 - F.interpolate(lr, scale_factor=4, mode="nearest")


class Answer(nn.Module):
    """A network that gives the same image whatever it sees, and keeps what it saw first."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image, self.seen = nn.Parameter(image), list[Tensor]()

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.seen.append(x)
        return self.image


def patches(count: int = 2) -> Tensor:
    from skimage.data import astronaut

    picture = torch.from_numpy(astronaut()).permute(2, 0, 1)
    return torch.stack([picture[:, 40 * i :, 180:][:, :32, :32] for i in range(count)])


def objective(p: Params, teacher: Denoiser | None) -> UnetObjective:
    pairs = Pairs(build_degradation(p.degradation, 4), PairPool(0, 2))
    return UnetObjective(pairs, PerceptualLoss(0, "proper", ""), Nearest(), 4, teacher=teacher)


def denoiser(p: Params, network: nn.Module) -> Denoiser:
    made = fresh_denoiser(p)
    made.network = network
    return made


# Laws


@pytest.mark.parametrize("normalise", ["none", "energy"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("variant", EVERY)
def test_a_teacher_that_is_its_own_student_teaches_nothing(variant: str, steps: int, normalise: str):
    p = params(uncertainty={"variant": variant, "normalise": normalise}, diffusion={"steps": steps})
    torch.manual_seed(0)
    teacher = fresh_denoiser(p)
    objective(p, None).calibrate(teacher, patches(), 0)
    student, taught = copy.deepcopy(teacher), objective(p, teacher)
    batch = taught.draw(patches(), (0, 0))
    loss, logged = taught.loss(student, *batch)
    assert logged["distilled"] < 1e-12  # the teacher runs without gradients, which rounds otherwise
    assert loss.item() == pytest.approx(objective(p, None).loss(student, *batch)[0].item()) and loss > 0
    with torch.no_grad():
        student.network.conv_last.bias += 0.1
    loss, logged = taught.loss(student, *batch)
    loss.backward()
    assert logged["distilled"] > 0
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("mistake", [0.0, 0.2])
def test_the_student_of_an_oracle_is_the_oracle(variant: str, steps: int, mistake: float):
    """Where the oracle errs, the student ends half-way between it and the truth: both errors count the same."""
    p, five = (params(uncertainty={"variant": variant}, diffusion={"steps": s}) for s in (steps, 5))
    lr, hr, *draws = objective(p, None).draw(patches(), (0, 0))
    x0 = 2 * hr - 1
    taught = objective(p, denoiser(five, Answer(x0 + mistake)))
    student = denoiser(p, Answer(torch.zeros_like(x0)))
    sgd = torch.optim.SGD(student.network.parameters(), lr=x0.numel() / 5)
    for _ in range(30):
        loss, logged = taught.loss(student, lr, hr, *draws)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    assert torch.allclose(student.network.image, x0 + mistake / 2, atol=1e-4)
    assert logged["distilled"].item() == pytest.approx((mistake / 2) ** 2, abs=1e-6)
    assert loss.item() == pytest.approx(2 * (mistake / 2) ** 2, abs=1e-6)


@pytest.mark.parametrize("variant", EVERY)
def test_both_start_from_the_same_x_t(variant: str, tmp_path: Path):
    """Also where the teacher's variant has learned something: the student keeps it, and never changes it."""
    uncertainty = {"variant": variant, "normalise": "energy"}
    five, one = (params(uncertainty=uncertainty, diffusion={"steps": s}) for s in (5, 1))
    teacher = denoiser(five, Answer(torch.zeros(2, 3, 32, 32)))
    objective(five, None).calibrate(teacher, patches(), 0)
    for weight in teacher.get_submodule("uncertainty").parameters():
        nn.init.constant_(weight, 1.5)
    student = fresh_denoiser(one)
    prepare_student(student, teacher)
    student.network = Answer(torch.ones(2, 3, 32, 32))
    taught = objective(one, teacher)
    loss, _ = taught.loss(student, *taught.draw(patches(), (0, 0)))
    loss.backward()
    assert len(teacher.network.seen) == 5
    assert torch.equal(student.network.seen[-1], teacher.network.seen[0])
    assert all(weight.grad is None for weight in student.get_submodule("uncertainty").parameters())


@pytest.mark.parametrize(("steps", "places"), [(1, [5]), (2, [1, 5]), (5, [1, 2, 3, 4, 5])])
def test_a_shorter_chain_starts_with_the_answers_of_the_longer_at_the_same_noise(steps: int, places: list[int]):
    five, few = params(diffusion={"steps": 5}), params(diffusion={"steps": steps})
    teacher, student = fresh_denoiser(five), fresh_denoiser(few)
    for block in teacher.network.modules():  # they start at zero, where the timestep changes nothing
        if isinstance(block, nn.Conv2d) and not block.weight.any():
            nn.init.normal_(block.weight, std=0.1)
    student.network.load_state_dict(teacher.network.state_dict())
    before = copy.deepcopy(student)
    move_timesteps(student, Pretrained(Path("five"), {}, {"diffusion": five.diffusion.model_dump()}))
    generator = torch.Generator().manual_seed(0)
    x, y_up, weight = (torch.rand(steps, 3, 32, 32, generator=generator) for _ in range(3))
    t, condition = torch.arange(1, steps + 1), teacher.condition(x, y_up)
    theirs = teacher(x, torch.tensor(places), condition, y_up, weight)
    assert torch.allclose(student(x, t, condition, y_up, weight), theirs, atol=1e-5)
    assert torch.allclose(before(x, t, condition, y_up, weight), theirs, atol=1e-3) is (steps == 5)


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncertainty": {"mix": 0.3, "learn_mix": False, "lr_scale": 5}, "unet": {"dim": 32}}, None),
        ({"diffusion": {"min_noise": 0.1, "power": 0.5, "sampler_eta": 0.5}}, None),
        ({"diffusion": {"kappa": 2.0}}, r"diffusion\.kappa: 2\.5 -> 2\.0\): use the values of the file"),
        ({"diffusion": {"sqrt_eta_end": 0.9}}, r"diffusion\.sqrt_eta_end"),
        ({"diffusion": {"predict": "epsilon"}}, r"diffusion\.predict: x0 -> epsilon"),
        ({"uncertainty": {"variant": "isotropic"}}, r"uncertainty\.variant: residual -> isotropic"),
        ({"scale": 2}, r"scale: 4 -> 2"),
    ],
)
def test_a_teacher_with_another_x_t_is_refused(tmp_path: Path, changes: dict[str, Any], message: str | None):
    model = save_model(tmp_path, params(diffusion={"steps": 5}))
    student = params(**({"diffusion": {"steps": 1}} | changes))
    arguments = str(model), student.scale, student.diffusion, student.uncertainty
    if message is None:
        assert load_teacher(*arguments).process.steps == 5
        return
    with pytest.raises(CheckpointError, match=rf"^train_unet\.teacher: {model / FILE}: .*{message}"):
        load_teacher(*arguments)


def test_other_files_are_no_teacher(tmp_path: Path):
    p = params()
    with pytest.raises(CheckpointError, match=r"^train_unet\.teacher: .*atd-48.*: has no UNet: use the weights of a"):
        load_teacher("atd-48", 4, p.diffusion, p.uncertainty)
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_teacher(str(tmp_path / "absent.safetensors"), 4, p.diffusion, p.uncertainty)
    for changes, remedy in (({"predict": "epsilon"}, "predict: x0"), ({"steps": 5}, "steps: 1")):
        with pytest.raises(ConfigError, match=rf"train_unet\.teacher: .*: set diffusion\.{remedy}$"):
            params(train_unet={"teacher": "upsr-48"}, diffusion=changes)


# A training


class Killed(Exception):
    pass


class Dying(nn.Module):
    """g in a process that dies at its `last` call."""

    def __init__(self, g: nn.Module, last: int) -> None:
        super().__init__()
        self.g, self.left = g, last

    def forward(self, lr: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return self.g(lr)


def lay_out(folder: Path, p: Params) -> None:
    """What the stages before leave: packed patches, validation images, g."""
    for i, patch in enumerate(patches(4)):
        for name in ("in", "data/validation"):
            images.write(folder / name / f"{i}.png", np.ascontiguousarray(patch.permute(1, 2, 0)))
    pack(folder / "in", folder / "data/train.lmdb", "png")
    save_model(folder / "models/atd", p)


@pytest.mark.parametrize("variant", ["residual", "dynamic"])
def test_a_student_is_trained_resumed_and_upscales(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    uncertainty = {"variant": variant, "normalise": "energy", "lr_scale": 100}
    teacher = params(diffusion={"steps": 5}, uncertainty=uncertainty | {"mix": 0.3})
    path = save_model(tmp_path / "teacher", teacher) / FILE
    with_measured(path)
    p = params(
        diffusion={"steps": 1}, uncertainty=uncertainty,
        train={"select": {"psnr": 1, "lpips": 0}, "log_every": 1},
        train_unet={"teacher": str(path), "lpips_weight": 0},
    )  # fmt: skip
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        lay_out(folder, teacher)
    # the whole training, and one that dies in its third step: g is called twice by a validation
    monkeypatch.chdir(folders[0])
    train_denoiser(p)
    monkeypatch.chdir(folders[1])
    with pytest.raises(Killed):
        train_denoiser(p, lambda g: Dying(g, 5))
    assert "trained with another g" not in capsys.readouterr().out
    # another teacher is refused, the same one goes on
    kept = path.read_bytes()
    other = save_model(tmp_path / "other", params(diffusion={"steps": 4}, uncertainty=uncertainty)) / FILE
    with_measured(other)
    shutil.copy(other, path)
    with pytest.raises(TrainingError, match=r"\(teacher: \w+ -> \w+\)"):
        train_denoiser(p)
    path.write_bytes(kept)
    train_denoiser(p)
    assert "resuming from step 2" in capsys.readouterr().out
    model, resumed = (folder / "models/unet" / FILE for folder in folders)
    assert resumed.read_bytes() == model.read_bytes()
    with (folders[0] / "models/unet/log.csv").open() as log:
        assert [float(row["distilled"]) > 0 for row in csv.DictReader(log)] == [True] * 4
    # the model: a UNet of one step with the teacher's noise, and nothing else of the teacher
    written, theirs = load_pretrained(model).parts, load_pretrained(path).parts
    assert {part: set(state) for part, state in written.items()} == {part: set(s) for part, s in theirs.items()}
    assert all(torch.equal(value, theirs["uncertainty"][key]) for key, value in written["uncertainty"].items())
    upscaler = Upscaler.from_pretrained(model)
    assert upscaler.diffuser is not None and upscaler.diffuser.denoiser.process.steps == 1
    assert upscaler(np.zeros((9, 10, 3), np.uint8)).shape == (36, 40, 3)


def with_measured(path: Path) -> None:
    """Replaces a saved model's unmeasured E[w²] by numbers, as a training would."""
    file = load_pretrained(path)
    parts = {part: {k: v.nan_to_num(0.25) for k, v in state.items()} for part, state in file.parts.items()}
    save_pretrained(path, parts, file.settings)


def test_a_teacher_that_the_training_overwrites_is_refused_and_another_g_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    p = params(train={"select": {"psnr": 1, "lpips": 0}}, train_unet={"lpips_weight": 0, "teacher": "models/unet"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, p)
    save_model(tmp_path / "models/unet", p)
    with pytest.raises(CheckpointError, match=r"^train_unet\.teacher: models/unet/.*: train_unet overwrites it:"):
        train_denoiser(p)
    (tmp_path / "models/unet").rename(tmp_path / "teacher")
    retrained = {"atd": build_atd(p.atd, 4).state_dict()}
    save_pretrained(tmp_path / "models/atd" / FILE, retrained, {"scale": 4, "atd": p.atd})
    train_denoiser(p.model_copy(update={"train_unet": p.train_unet.model_copy(update={"teacher": "teacher"})}))
    assert "teacher/weights.safetensors was trained with another g than models/atd" in capsys.readouterr().out

"""A student and its teacher: the same x_T, fewer timesteps (SinSR, arXiv 2311.14760)."""

from typing import Any, cast

import torch
import torch.nn as nn

from upsr.config import Diffusion, Uncertainty
from upsr.diffusion.denoiser import Denoiser, load_denoiser
from upsr.diffusion.process import build_process
from upsr.models.unet import UNet, build_unet, timestep_embedding
from upsr.pretrained import CheckpointError, Pretrained, load_pretrained, weights_file
from upsr.training.state import differences

NOT_IN_X_T = {"mix", "learn_mix", "lr_scale", "edge_weights"}  # keys of `uncertainty`: how it starts and learns


def load_teacher(model: str, scale: int, diffusion: Diffusion, uncertainty: Uncertainty) -> Denoiser:
    """The trained denoiser of a weights file, a model folder or bundled weights, for a student of these settings.

    Raises `CheckpointError` where the file is missing or foreign, has no UNet, or its settings are not the student's.
    """
    path = weights_file(model)
    file = load_pretrained(path)
    if "unet" not in file.parts:
        raise CheckpointError(f"train_unet.teacher: {path}: has no UNet: use the weights of a trained UPSR")
    theirs = _shared(file.scale, file.section("diffusion", Diffusion), file.section("uncertainty", Uncertainty))
    if wrong := differences(theirs, _shared(scale, diffusion, uncertainty)):
        raise CheckpointError(
            f"train_unet.teacher: {path}: another x_T or prediction ({'; '.join(wrong)}): use the values of the file"
        )
    return load_denoiser(file, build_unet)


def _shared(scale: int, diffusion: Diffusion, uncertainty: Uncertainty) -> dict[str, Any]:
    """What x_T = y↑ + κ √η_T · w ⊙ ε and the meaning of the weights depend on, as plain values."""
    return {
        "scale": scale,
        "diffusion": diffusion.model_dump(include={"kappa", "sqrt_eta_end", "predict"}),
        "uncertainty": uncertainty.model_dump(mode="json", exclude=NOT_IN_X_T),
    }


def prepare_student(student: Denoiser, teacher: Denoiser) -> None:
    """Gives a student the teacher's noise: what the teacher's variant learned and measured is copied and frozen."""
    student.uncertainty.load_state_dict(teacher.uncertainty.state_dict())
    student.get_submodule("uncertainty").requires_grad_(False)


@torch.no_grad()
def move_timesteps(denoiser: Denoiser, file: Pretrained) -> None:
    """Makes a denoiser with the weights of `file`, of another chain perhaps, answer as on that chain.

    Each timestep acts as the file's of the nearest √η, T as its T: W ← W + W (E_theirs − E_ours) E_ours⁺, where W is
    the first layer of the timestep's embedding, and the columns of E are the embeddings of the timesteps.
    """
    network = cast(UNet, denoiser.network)
    ours, theirs = denoiser.sqrt_eta[1:], build_process(file.section("diffusion", Diffusion)).sqrt_eta[1:]
    if torch.equal(ours, theirs):
        return
    print(f"unet: {len(theirs)} timesteps moved to {len(ours)}", flush=True)
    nearest = (ours[:, None] - theirs).abs().argmin(1)
    e_theirs, e_ours = (timestep_embedding(t, network.dim).double().T for t in (nearest, torch.arange(len(ours))))
    weight = cast(nn.Linear, network.time_embed[0]).weight
    weight += (weight.double() @ (e_theirs - e_ours) @ torch.linalg.pinv(e_ours)).to(weight.dtype)

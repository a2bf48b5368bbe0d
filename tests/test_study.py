"""A study: what is planned is run once, resumed, compared as declared, and shown."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, params, settings
from tiny_project import Project

from pipelines import study_report
from pipelines.study import Plan, Remembered, load_plan
from pipelines.train_unet import fresh_denoiser
from upsr.config import ConfigError, Params, parse
from upsr.files import DataError
from upsr.images import read_rgb, write
from upsr.models.atd import build_atd
from upsr.training.unet_objective import build_unet_objective

VARIANTS = ["isotropic", "residual", "edge_frequency", "dynamic"]


def plan(**changes: object) -> Plan:
    return parse(Plan, yaml.safe_load((ROOT / "scales/study.yaml").read_text()) | changes, "test")


def test_every_planned_run_has_valid_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    planned = load_plan()
    for arm, values in planned.arms.items():
        p = parse(Params, planned.params(arm, 1), arm)
        assert p.seed == 1
        assert p.train.init == "none"
        assert p.train.validate_every == p.train_unet.steps, "one checkpoint: nothing is chosen"
        assert (p.uncertainty.normalise, p.unet.dim) == ("energy", values.get("unet.dim", 32))
        assert p.uncertainty.variant == values["uncertainty.variant"]


def test_a_comparison_with_an_arm_that_is_not_there_is_refused():
    questions = {"noise": {"asks": "?", "contrasts": {"a - b": ["residual", "nothing"]}}}
    with pytest.raises(ConfigError, match="names the arm `nothing`: add it to arms"):
        plan(questions=questions)
    with pytest.raises(ConfigError, match=r"arms.x: unknown key `unet.dmi`"):
        plan(arms={"x": {"unet.dmi": 1}}, questions={"q": {"asks": "?", "contrasts": {"c": ["x", "x"]}}}).params("x", 0)


def test_all_variants_see_the_same_random_numbers():
    """For a seed: the same initial weights, patches, degradations, timesteps and noise; other ones for another seed."""
    found = {}
    for seed in (0, 1):
        for variant in VARIANTS:
            p = params(
                seed=seed, uncertainty={"variant": variant, "normalise": "energy"}, train_unet={"lpips_weight": 0}
            )
            torch.manual_seed(p.seed)
            weights = fresh_denoiser(p).network.state_dict().values()
            objective = build_unet_objective(p, build_atd(p.atd, 4), None)
            hr = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(torch.uint8)
            drawn = objective.draw(hr, (p.seed, 0))
            found[seed, variant] = torch.cat([x.flatten().float() for x in (*weights, *drawn)])
    for seed in (0, 1):
        for variant in VARIANTS[1:]:
            assert torch.equal(found[seed, variant], found[seed, "isotropic"]), variant
    assert not torch.equal(found[0, "isotropic"], found[1, "isotropic"])


def test_the_arms_of_a_seed_share_what_g_makes_of_an_image(tmp_path: Path):
    calls = []

    class G(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x)
            return super().forward(x)

    g, a, b = G(3, 3, 1), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    first, second = Remembered(g, tmp_path), Remembered(g, tmp_path)
    assert torch.equal(first(a), second(a)) and len(calls) == 1
    assert not torch.equal(first(a), second(b)) and len(calls) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert second(a).dtype == torch.bfloat16 and len(calls) == 3
    other = Remembered(G(3, 3, 1), tmp_path)
    assert not torch.equal(other(a), first(a)), "the output of another g"


def results(folder: Path, differences: dict[str, float], seeds: int = 3) -> None:
    """Figures of finished runs: LPIPS and DISTS of an arm differ from the others' by a constant and a little noise."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for arm, difference in differences.items():
        for seed in range(seeds):
            rows = [
                {"benchmark": f"BSD100-{kind}", "picture": str(i)}
                | {
                    m: 0.3 + difference + i / 50 + 1e-4 * torch.randn((), generator=generator).item()
                    for m in ("lpips", "dists")
                }
                for kind in study_report.KINDS
                for i in range(8)
            ]
            pd.DataFrame(rows).to_csv(folder / f"{arm}-{seed}.csv", index=False)
            facts = {
                "arm": arm,
                "seed": seed,
                "kappa": 2.5,
                "training_seconds": 60,
                "benchmarks": {},
                "inputs": {"settings": {"train_unet.steps": 1200, "seed": seed}},
            }
            facts |= {"common": {"draws": str(seed), "weights": "w"}, "mix": None, "commit": "c"}
            (folder / f"{arm}-{seed}.json").write_text(json.dumps(facts))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/variants.md", tmp_path / "docs")
    return tmp_path / "docs/variants.md"


def test_the_page_has_the_answer_in_words_and_a_plot(page: Path):
    results(Path("docs/study"), {"isotropic": 0.0, "isotropic-equal": -0.02, "residual": -0.02})
    plots = study_report.write(plan())
    text = page.read_text()
    assert "LPIPS of isotropic-equal is better than that of isotropic by 0.02" in text
    assert "LPIPS of residual is equal to that of isotropic-equal within 0.005" in text
    assert "Open: not trained yet: `edge-frequency`." in text
    assert plots == [Path("docs/study/noise.png")]
    assert read_rgb(plots[0]).std() > 10
    again = study_report.write(plan())
    assert (page.read_text(), again) == (text, plots)


def test_the_page_shows_how_the_learned_mix_moved(page: Path):
    results(Path("docs/study"), {"edge-frequency": 0.0, "inverted": -0.02})
    path = Path("docs/study/inverted-1.json")
    path.write_text(path.read_text().replace('"mix": null', '"mix": [[50, 0.5], [100, 0.6]]'))
    assert Path("docs/study/sign-mix.png") in study_report.write(plan())
    assert "(study/sign-mix.png)" in page.read_text()
    assert read_rgb(Path("docs/study/sign-mix.png")).std() > 10


def test_a_question_without_a_place_on_the_page_is_named(page: Path):
    page.write_text("# Nothing\n")
    with pytest.raises(DataError, match="no `<!-- answer: noise -->`"):
        study_report.write(plan())


def test_runs_that_saw_other_random_numbers_are_not_compared(page: Path):
    results(Path("docs/study"), {"isotropic": 0.0, "residual": -0.02})
    path = Path("docs/study/residual-1.json")
    path.write_text(path.read_text().replace('"draws": "1"', '"draws": "2"'))
    with pytest.raises(DataError, match="runs of seed 1 differ in their draws"):
        study_report.write(plan())


def test_runs_of_other_settings_are_not_compared(page: Path):
    results(Path("docs/study"), {"isotropic": 0.0, "residual": -0.02})
    path = Path("docs/study/residual-1.json")
    path.write_text(path.read_text().replace("1200", "2000"))
    with pytest.raises(DataError, match=r"isotropic-0 and residual-1 differ in `train_unet.steps`, which no arm sets"):
        study_report.write(plan())


def test_a_setting_that_came_later_does_not_part_the_runs(page: Path):
    results(Path("docs/study"), {"isotropic": 0.0, "isotropic-equal": -0.02, "residual": -0.02})
    for run in ("isotropic-0", "residual-1"):
        path = Path(f"docs/study/{run}.json")
        path.write_text(
            path.read_text().replace('"train_unet.steps": ', '"train_unet.new": null, "train_unet.steps": ')
        )
    study_report.write(plan())
    path.write_text(path.read_text().replace('"train_unet.new": null', '"train_unet.new": 1'))
    with pytest.raises(DataError, match=r"isotropic-0 and residual-1 differ in `train_unet.new`"):
        study_report.write(plan())


def test_an_arm_whose_differences_are_all_equal_is_futile(page: Path):
    results(
        Path("docs/study"), {"isotropic": 0.0, "isotropic-equal": -0.02, "residual": -0.02, "edge-frequency": -0.02}
    )
    assert study_report.is_futile(plan(), "noise", "edge-frequency")
    assert not study_report.is_futile(plan(), "noise", "isotropic")
    Path("docs/study/residual-0.json").unlink()
    Path("docs/study/residual-1.json").unlink()  # one seed is left: no interval
    assert not study_report.is_futile(plan(), "noise", "edge-frequency")


def test_the_page_shows_the_committed_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """docs/variants.md is what `--report` writes from docs/study."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    study_report.write(plan())
    assert (tmp_path / "docs/variants.md").read_text() == (ROOT / "docs/variants.md").read_text()


@pytest.mark.slow
def test_a_study_runs_resumes_and_is_done(tmp_path: Path, weights: Path):
    project = Project(tmp_path, weights)
    shutil.rmtree(tmp_path / "docs/study", ignore_errors=True)
    planned = yaml.safe_load((tmp_path / "scales/study.yaml").read_text())
    tiny = settings()
    planned["settings"] = {
        "data": {"source": "sample", "folder": None},
        "evaluate": {"metrics": ["lpips", "dists"], "seeds": [0, 1]},
    }
    planned["settings"] |= {
        "train_unet": {**tiny["train_unet"], "steps": 2, "rollout": 0.5},
        "train": {"save_every": 1},
    }
    planned["settings"]["train"] |= {"validate_every": 2, "select": {"psnr": 0.1, "lpips": 0}}
    arms = {name: planned["arms"][name] for name in ("isotropic", "residual")}
    planned |= {"arms": arms, "seeds": [0, 1], "benchmarks": ["data/own/Two"], "side": 8}
    contrasts = {"residual - isotropic": ["residual", "isotropic"]}
    planned["questions"] = {"noise": planned["questions"]["noise"] | {"contrasts": contrasts}}
    (tmp_path / "scales/study.yaml").write_text(yaml.safe_dump(planned))
    for i, name in enumerate(("a", "b")):
        image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(i)).mul(255).byte().movedim(0, 2).numpy()
        write(tmp_path / f"data/own/Two/HR/{name}.png", image)
        write(tmp_path / f"data/own/Two/LRx4/{name}.png", image[::4, ::4].copy())
    project("python", "-m", "pipelines.study", "residual-1", fails=True)  # nothing is prepared yet: one line
    project("python", "-m", "pipelines.study", "--jobs", "2")
    table = pd.read_csv(tmp_path / "docs/study/residual-1.csv")
    assert set(table["benchmark"]) == {"Two-clean", "Two-degraded"}
    assert {"psnr", "ssim", "lpips", "dists"} <= set(table)
    assert not table.isna().any().any()
    assert "LPIPS of residual" in (tmp_path / "docs/variants.md").read_text()
    facts = project.json("docs/study/residual-1.json")
    assert facts["common"] == project.json("docs/study/isotropic-1.json")["common"]
    # nothing is left to do; a lost result alone is done again, with the same figures
    assert "residual" not in project("python", "-m", "pipelines.study")
    (tmp_path / "docs/study/residual-0.json").unlink()
    before = (tmp_path / "docs/study/residual-0.csv").read_text()
    output = project("python", "-m", "pipelines.study")
    assert "residual-0" in output and "isotropic-0" not in output
    assert (tmp_path / "docs/study/residual-0.csv").read_text() == before

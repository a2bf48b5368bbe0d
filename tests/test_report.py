"""The report page: what it says equals what was measured, and a browser shows it."""

import base64
import csv
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import Call, browser, script
from torch import Tensor

from pipelines.report import render
from pipelines.report_images import read_images
from upsr.config import ConfigError
from upsr.data.benchmarks import open_benchmark
from upsr.evaluation.measure import bicubic, measure
from upsr.evaluation.metrics import Metrics, higher_is_better
from upsr.evaluation.protocol import PROTOCOLS
from upsr.evaluation.statistics import table
from upsr.images import as_rgb8, decode, read_rgb, resize, round8, to_image, to_tensor, write

PARAMS = Path(__file__).parent.parent / "params.yaml"


def sharpened(lr: Tensor, number: int) -> Tensor:
    x = bicubic(lr, 4)
    return (x + 0.6 * (x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False))).clamp(0, 1)


def grainy(lr: Tensor, number: int) -> Tensor:
    noise = torch.randn(3, *(4 * s for s in lr.shape[2:]), generator=torch.Generator().manual_seed(number))
    return (sharpened(lr, number) + 0.03 * noise).clamp(0, 1)


MODELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "bicubic": lambda lr, number: bicubic(lr, 4),
    "atd": sharpened,
    "upsr": grainy,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before leave behind, for three small photographs."""
    folder = tmp_path_factory.mktemp("work")
    photographs(folder / "holdout")
    rows = measured(folder / "holdout", folder / "reports" / "evaluate")
    evaluated = folder / "reports" / "evaluate"
    manifests = {"holdout": open_benchmark(folder / "holdout", 4).manifest}
    (evaluated / "manifests.json").write_text(json.dumps(manifests))
    (evaluated / "run.json").write_text(json.dumps(identity()))
    write_table(evaluated / "per_image.csv", rows)
    write_table(evaluated / "summary.csv", table(rows))
    for model in ("atd", "unet"):
        write_table(folder / "models" / model / "log.csv", training(150))
        scores = enumerate((1.0, 1.4, 1.2), start=1)
        checkpoints = [{"step": 50 * i, "psnr": 20 + score, "lpips": 0.4, "score": score} for i, score in scores]
        write_table(folder / "models" / model / "checkpoints.csv", checkpoints)
    return folder


def photographs(folder: Path) -> None:
    from skimage import data

    for name, picture in (("astronaut", data.astronaut()), ("chelsea", data.chelsea()), ("coffee", data.coffee())):
        x = to_tensor(picture)
        hr = round8(resize(x, [s // 12 * 4 for s in x.shape[2:]]))
        write(folder / "HR" / f"{name}.png", to_image(hr))
        write(folder / "LRx4" / f"{name}.png", to_image(resize(hr, [s // 4 for s in hr.shape[2:]])))


def measured(benchmark: Path, folder: Path) -> list[dict[str, Any]]:
    metrics = Metrics([], folder, PROTOCOLS["basicsr"], 4, torch.device("cpu"))
    rows = []
    for pair in open_benchmark(benchmark, 4).pairs:
        for model, upscale in MODELS.items():

            def save(lr: Tensor, sr: Tensor, hr: Tensor | None, model: str = model, name: str = pair.name) -> None:
                residual = (sr - bicubic(lr, 4)).abs().mean(1, keepdim=True).repeat(1, 3, 1, 1) * 8
                layers = {"lr": lr, model: sr, "hr": hr} | ({"residual": residual} if model == "atd" else {})
                for layer, x in layers.items():
                    write(folder / "pictures" / "holdout" / name / f"{layer}.png", to_image(x))

            row, failed = measure(upscale, pair, 4, metrics, save)
            assert not failed and row
            rows.append({"benchmark": "holdout", "model": model, "lpips": 1 - row["ssim"]} | row)
    return rows


def identity() -> dict[str, Any]:
    return {
        "protocol": "basicsr",
        "seeds": [0],
        "tile": 128,
        "device": "CPU, 2 cores",
        "git_commit": "3e879b7c0ffee3e879b7c0ffee3e879b7c0ffee0",
        "dvc_experiment": "wide",
        "params_sha256": "ab" * 32,
        "packages": {"torch": "2.15.0"},
        "absent": {"musiq": "its weights are not available"},
        "absent_benchmarks": {"Set5": "data/benchmarks/Set5: no such folder: put its HR/ and LRx4/ there"},
        "failed": [
            {"benchmark": "holdout", "picture": "torn", "model": "atd", "reason": "torn.png: truncated <picture>"}
        ],
        "digests": {"holdout": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        "peak_memory_mb": 1234.5,
        "models": {"atd": {"dim": 48, "sha256": "cd" * 32}, "unet": {"dim": 48, "sha256": "ef" * 32}},
        "note": "Sample scale: trained for 150 steps.",
    }


def training(steps: int) -> list[dict[str, Any]]:
    noise = torch.rand(steps, generator=torch.Generator().manual_seed(0)).tolist()
    return [
        {"step": i, "loss": (0.6 / (1 + i / 9) + 0.04) * (0.6 + 0.8 * n), "lr": 5e-4 * min(1, i / 20), "bad_steps": 0}
        for i, n in enumerate(noise, start=1)
    ] + [{"step": steps + 1, "loss": "nan", "lr": "", "bad_steps": 0}]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


class Page(html.parser.HTMLParser):
    """What a reader without a script sees: the value of each table's cells, and the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: list[float] = []
        self.best: list[float] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "td" and known.get("data-value"):
            self.values.append(float(known["data-value"] or 0))
            self.best += [self.values[-1]] if known.get("class") == "best" else []
        self.sources += [known["src"] or ""] if "src" in known else []
        self.links += [known["href"] or ""] if "href" in known else []
        self.anchors += [known["id"] or ""] if "id" in known else []


@pytest.fixture(scope="module")
def text(work: Path) -> str:
    return render(work / "reports", work / "models", PARAMS)


def test_tables_hold_the_figures(work: Path, text: str) -> None:
    rows = table(stored(work))
    page_text = section(text, "results")
    page = Page(page_text)
    models = [[row for row in rows if row["model"] == model] for model in MODELS]
    means = [row["mean"] for own in models for row in own]
    assert "Means on holdout" in page_text and "rowgroup" not in page_text and ">0.00<" not in text
    assert page.values[: len(means)] == means
    differences = [row["difference"] for own in models[1:] for row in own if row["metric"] != "seconds"]
    assert page.values[len(means) :][: len(differences)] == differences
    for metric, best in (("psnr", max), ("ssim", max), ("lpips", min)):
        assert best(row["mean"] for row in rows if row["metric"] == metric) in page.best
    assert min(row["mean"] for row in rows if row["metric"] == "seconds") not in page.best


def section(text: str, name: str) -> str:
    return text.partition(f'<section id="{name}')[2].partition("</section>")[0]


def test_benchmarks_are_in_one_table(work: Path, tmp_path: Path) -> None:
    """Also one without originals, on which only some metrics can be measured."""
    shutil.copytree(work, tmp_path / "two")
    folder = tmp_path / "two" / "reports" / "evaluate"
    shutil.copytree(folder / "pictures" / "holdout", folder / "pictures" / "real")
    rows = stored(work)
    rows += [
        {k: row[k] if k in ("model", "picture", "lpips") else "" for k in row} | {"benchmark": "real"} for row in rows
    ]
    manifest = json.loads((folder / "manifests.json").read_text())["holdout"]
    (folder / "manifests.json").write_text(
        json.dumps({name: manifest | {"name": name} for name in ("holdout", "real")})
    )
    write_table(folder / "per_image.csv", rows)
    write_table(folder / "summary.csv", table([{k: v for k, v in row.items() if v != ""} for row in rows]))
    page = section(render(tmp_path / "two" / "reports", work / "models", PARAMS), "results")
    means = page.partition("</table>")[0]
    assert re.findall(r'colspan="\d+">(\w+)', means) == ["holdout", "real"]
    assert means.count("<tr>") == 1 + 2 * (1 + len(MODELS))


def test_a_difference_is_coloured_where_it_is_sure(work: Path, text: str) -> None:
    tones = set()
    for row in table(stored(work)):
        if row["difference"] is not None and row["metric"] != "seconds":
            better = (row["difference"] > 0) == higher_is_better(row["metric"])
            sure = row["difference_low"] > 0 or row["difference_high"] < 0
            tone = f' class="{"better" if better else "worse"}"' if sure else ""
            assert f'<td data-value="{row["difference"]}"{tone}>' in text
            tones.add(tone)
    assert len(tones) > 1


def stored(work: Path) -> list[dict[str, Any]]:
    with (work / "reports" / "evaluate" / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in ("benchmark", "model", "picture") else float(v) for k, v in row.items()} for row in rows]


def test_of_many_pictures_the_best_and_the_worst_are_shown(work: Path, tmp_path: Path) -> None:
    """Of nine pictures six, in the order of the gain; the table beneath has all nine."""
    shutil.copytree(work, tmp_path / "many")
    folder = tmp_path / "many" / "reports" / "evaluate"
    rows = []
    for i in range(9):
        name = f"p{i}"
        shutil.copytree(folder / "pictures" / "holdout" / "chelsea", folder / "pictures" / "holdout" / name)
        for model, lpips in (("bicubic", 0.5), ("upsr", 0.1 * ((i * 4) % 9))):
            rows.append({"benchmark": "holdout", "model": model, "picture": name, "lpips": lpips})
    write_table(folder / "per_image.csv", rows)
    write_table(folder / "summary.csv", table(rows))
    page = render(tmp_path / "many" / "reports", work / "models", PARAMS)
    ranked = sorted(range(9), key=lambda i: (i * 4) % 9)
    assert re.findall(r"<h3>(p\d)", page) == [f"p{i}" for i in ranked[:3] + ranked[-3:]]
    assert "UPSR on every image of holdout (9)" in page


def test_of_a_large_picture_the_part_with_most_detail_is_shown(tmp_path: Path) -> None:
    hr = np.full((800, 1200, 3), 128, np.uint8)
    hr[600:700, 900:1000] = np.random.default_rng(0).integers(0, 255, (100, 100, 3))
    for name, picture in (("lr", hr[::4, ::4]), ("upsr", hr), ("hr", hr), ("edge", hr), ("weights", hr)):
        write(tmp_path / f"{name}.png", np.ascontiguousarray(picture))
    shown = read_images(tmp_path, MODELS)
    assert shown.part == "512 × 512 of 1200 × 800 pixels"
    assert [(x.name, x.width, x.height) for x in shown.results] == [
        ("lr", 128, 128), ("upsr", 512, 512), ("hr", 512, 512)
    ]  # fmt: skip
    assert [(x.name, x.width) for x in shown.maps] == [("edge", 512), ("weights", 1200)]
    x, y = shown.focus
    left, top = 950 - x * 5.12, 650 - y * 5.12  # of the part, were the spot's centre its focus
    assert 0 <= left <= 900 and left + 512 + 50 >= 1000 and top + 512 <= 800 + 50


def test_links_lead_to_parts_of_the_page(text: str) -> None:
    page = Page(text)
    contents = Page(text.partition("<nav")[2].partition("</nav>")[0]).links
    assert contents == [
        "#images1", "#atd1", "#results", "#training", "#method", "#variants", "#configuration"
    ]  # fmt: skip
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.anchors)
    assert len(set(page.anchors)) == len(page.anchors)
    places = [text.index(f'id="{link[1:]}"') for link in contents]
    assert places == sorted(places)


def test_the_images_where_atd_beats_upsr_are_named(work: Path, text: str, tmp_path: Path) -> None:
    """Of nine images, ATD is better on four: the three clearest are named, and shown whether ranked or not."""
    shutil.copytree(work, tmp_path / "many")
    folder = tmp_path / "many" / "reports" / "evaluate"
    upsr = [0.10, 0.70, 0.20, 0.74, 0.30, 0.72, 0.40, 0.71, 0.45]
    rows = []
    for i, lpips in enumerate(upsr):
        shutil.copytree(folder / "pictures" / "holdout" / "chelsea", folder / "pictures" / "holdout" / f"p{i}")
        for model, value in (("bicubic", 0.9 if lpips < 0.7 else 1.4 - 0.001 * i), ("atd", 0.69), ("upsr", lpips)):
            rows.append({"benchmark": "holdout", "model": model, "picture": f"p{i}", "lpips": value})
    write_table(folder / "per_image.csv", rows)
    write_table(folder / "summary.csv", table(rows))
    page = render(tmp_path / "many" / "reports", work / "models", PARAMS)
    named = re.findall(r'<li><a href="#([\w-]+)">(\w+)</a>: (.*?)</li>', page)
    expected = {"p3": "0.7400", "p5": "0.7200", "p7": "0.7100"}
    assert {name: figures for _, name, figures in named} == {
        n: f"LPIPS 0.6900 against {v}" for n, v in expected.items()
    }
    for anchor, name, figures in named:
        article = page.partition(f'<article id="{anchor}"')[2].partition("</h3>")[0]
        assert f"<h3>{name} " in article and f"ATD beats UPSR: {figures}" in article
    assert page.count("ATD beats UPSR:") == 3


def test_settings_that_differ_from_the_commit_are_listed(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    params, facts = tmp_path / "params.yaml", tmp_path / "work" / "reports" / "evaluate" / "run.json"
    shutil.copy(PARAMS, params)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-q", "-m", "start")
    facts.write_text(json.dumps(identity() | {"git_commit": git("rev-parse", "HEAD") + "-dirty"}))
    page = partial(render, tmp_path / "work" / "reports", tmp_path / "work" / "models", params)
    assert "differ from the commit" not in page()
    params.write_text(
        params.read_text().replace("seed: 0\n", "seed: 3\n").replace("variant: residual", "variant: dynamic")
    )
    assert re.findall(r"<span><code>(.*?)</code> \(was (.*?)\)", page()) == [
        ("seed=3", "0"), ("uncertainty.variant=dynamic", "residual")
    ]  # fmt: skip


def test_the_page_links_its_run_in_mlflow(work: Path, text: str, tmp_path: Path) -> None:
    assert "MLflow run" not in text  # figures of a machine without MLflow
    shutil.copytree(work / "reports", tmp_path / "reports")
    address = "http://127.0.0.1:5000/#/experiments/3/runs/0123456789abcdef?workflowType=machine_learning"
    (tmp_path / "reports" / "evaluate" / "run.json").write_text(json.dumps(identity() | {"mlflow_run": address}))
    assert address in Page(render(tmp_path / "reports", work / "models", PARAMS)).links


def test_the_best_variant_is_named_where_variants_were_compared(work: Path, text: str, tmp_path: Path) -> None:
    assert "compare.html" in text and "compare.html" not in Page(text).links
    shutil.copytree(work / "reports", tmp_path / "reports")
    best = "Best on average: in PSNR, dynamic, width 48 (30.0000)."
    (tmp_path / "reports" / "variants.md").write_text(f"# Variants\n\n**{best}** Which\n\n| **1** |\n")
    page = section(render(tmp_path / "reports", work / "models", PARAMS), "variants")
    assert best in page and "compare.html" in Page(page).links


def test_the_head_says_when_and_what(work: Path, text: str, tmp_path: Path) -> None:
    assert "<span>residual, width 48</span>" in text
    shutil.copytree(work / "reports", tmp_path / "reports")
    run = identity() | {"date": "2026-01-02 03:04+01:00"}
    (tmp_path / "reports" / "evaluate" / "run.json").write_text(json.dumps(run))
    assert "<span>2026-01-02 03:04</span>" in render(tmp_path / "reports", work / "models", PARAMS)


def test_the_method_shows_the_images_that_the_unet_sees(work: Path, text: str, tmp_path: Path) -> None:
    condition = "  condition:\n  - sr\n  - bicubic\n"
    assert condition in PARAMS.read_text()
    arrows = section(text, "method").count("<path d=")
    (tmp_path / "params.yaml").write_text(PARAMS.read_text().replace(condition, "  condition: [sr]\n"))
    other = render(work / "reports", work / "models", tmp_path / "params.yaml")
    assert section(other, "method").count("<path d=") == arrows - 1


def test_a_full_training_has_no_note(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "reports", tmp_path / "reports")
    facts = {key: value for key, value in identity().items() if key != "note"}
    (tmp_path / "reports" / "evaluate" / "run.json").write_text(json.dumps(facts))
    assert "<main>" in render(tmp_path / "reports", work / "models", PARAMS)


def test_page_needs_nothing_beside_itself(text: str) -> None:
    page = Page(text)
    assert len(page.sources) == 3 * 6  # LR, three models, HR and a map of three pictures
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_small_pictures_are_embedded_as_they_are(work: Path, text: str) -> None:
    lr = read_rgb(work / "reports" / "evaluate" / "pictures" / "holdout" / "astronaut" / "lr.png")
    embedded = [
        base64.b64decode(uri.partition(",")[2]) for uri in Page(text).sources if uri.startswith("data:image/png")
    ]
    assert any(np.array_equal(as_rgb8(decode(data, "embedded")), lr) for data in embedded)


def test_page_tells_what_is_missing(text: str) -> None:
    assert "its weights are not available" in text and "put its HR/ and LRx4/ there" in text
    assert "holdout / torn, ATD: torn.png: truncated &lt;picture&gt;" in text
    assert "Sample scale: trained for 150 steps." in text


def test_curves_of_what_changes(text: str) -> None:
    page = section(text, "training")
    drawn = ["loss", "validation PSNR", "lr"]  # of both trainings; lpips and bad_steps never move
    assert re.findall(r'class="title".*?>(.*?)<', page) == drawn * 2
    assert page.count('class="mean"') == 6 and page.count("<circle") == 2 * 3
    assert page.count("the checkpoint of step 100 has the best score") == 2
    assert all(re.fullmatch(r"[\d., -]+", points) for points in re.findall(r'points="(.*?)"', text))


def test_a_missing_input_is_one_line(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"summary\.csv: no such file: run"):
        render(tmp_path, work / "models", PARAMS)


# In a browser.


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")
def test_browser_shows_pictures_slides_sorts_and_zooms(text: str, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(text, encoding="utf-8")
    with browser(tmp_path / "profile") as (call, errors):
        js = partial(script, call)
        call("Page.navigate", url=page.as_uri())
        js("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")
        js("Promise.all([...document.images].map(image => image.decode()))")
        assert js("document.images.length") == 3 * (6 + 2)
        assert js("[...document.images].every(image => image.naturalWidth > 0)")

        hidden = "parseFloat(getComputedStyle(document.querySelector('.compare .after')).clipPath.split(' ').at(-1))"
        assert js(hidden) == 50
        drag(call)
        assert js(hidden) == pytest.approx(25, abs=0.2)
        press(call, "ArrowRight")
        assert js(hidden) == pytest.approx(26, abs=0.2)
        assert js("document.querySelector('.compare input').ariaValueText") == "26 %"

        tags = "[...document.querySelectorAll('.tag')].slice(0, 2).map(tag => tag.textContent).join()"
        assert js(tags) == "ATD,UPSR"  # an image where ATD beats UPSR
        js("var side = document.querySelector('select.after'); side.value = 'hr'")
        js("side.dispatchEvent(new Event('change'))")
        assert js(tags) == "ATD,HR"
        assert js("document.querySelector('.compare .after img').src === document.querySelector('[data-layer=hr]').src")

        js("document.querySelector('.zoomer button[value=\"2\"]').click()")
        shown = "document.querySelector('.compare .after img').getBoundingClientRect()"
        box = "document.querySelector('.compare').getBoundingClientRect()"
        assert js(f"{shown}.width / {box}.width") == pytest.approx(2, abs=0.01)
        before = js(f"{shown}.left")
        drag(call, 0.8, 0.6)  # away from the line: the pictures move, the line stays
        assert js(f"{shown}.left") < before and js(hidden) == pytest.approx(26, abs=0.2)
        zoom = "document.querySelector('.zoomer output').textContent"
        assert js(zoom) == "2×"
        before = js(f"{shown}.left")
        press(call, "ArrowRight", shift=True)
        assert js(f"{shown}.left") < before and js(hidden) == pytest.approx(26, abs=0.2)
        press(call, "+")
        assert js(zoom) == "4×"
        js("document.querySelector('.compare').scrollIntoView({block: 'center', behavior: 'instant'})")
        before = js(f"{shown}.top")
        touch(call, (0.8, 0.5), (0.8, 0.3))  # a finger pans upwards, and does not scroll the page
        assert (before - js(f"{shown}.top")) / js(f"{box}.height") == pytest.approx(0.2, abs=0.02)
        press(call, "-")
        press(call, "-")
        touch(call, (0.26, 0.5), (0.6, 0.5))
        assert js(zoom) == "1×" and js(hidden) == pytest.approx(60, abs=0.5)

        column = "[...document.querySelector('tbody').rows].map(row => Number(row.cells[1].dataset.value))"
        js("document.querySelectorAll('thead button')[1].click()")
        assert js(column) == sorted(js(column), reverse=True)

        js("document.querySelector('.strip .open').click()")
        zoomed = "document.querySelector(':target.zoom')?.getBoundingClientRect().height === innerHeight"
        assert js(zoomed)
        js("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
        assert not js(zoomed)

        call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
        assert js("document.documentElement.scrollWidth") == 400
        assert errors == []


def press(call: Call, key: str, shift: bool = False) -> None:
    script(call, "document.querySelector('.compare input').focus()")
    code = {"windowsVirtualKeyCode": 39} if key == "ArrowRight" else {}
    for event in ("keyDown", "keyUp"):
        call("Input.dispatchKeyEvent", type=event, key=key, code=key, modifiers=8 * shift, **code)


def touch(call: Call, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Puts a finger on the first slider, at shares of its width and height, and moves it in steps."""
    script(call, "document.querySelector('.compare').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = script(call, "document.querySelector('.compare').getBoundingClientRect().toJSON()")
    for i in range(6):
        x, y = (a + (b - a) * i / 5 for a, b in zip(start, end, strict=True))
        point = {"x": box["left"] + box["width"] * x, "y": box["top"] + box["height"] * y}
        call("Input.dispatchTouchEvent", type="touchMove" if i else "touchStart", touchPoints=[point])
    call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def drag(call: Call, start: float = 0.5, end: float = 0.25) -> None:
    """Presses the mouse at a share of the first slider's width and lets it go at another."""
    script(call, "document.querySelector('.compare').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = script(call, "document.querySelector('.compare').getBoundingClientRect().toJSON()")
    y = box["top"] + box["height"] / 2
    for event, share in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
        x = box["left"] + box["width"] * share
        call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", buttons=1, clickCount=1)

"""What contributors read and what their tools read: links lead somewhere, files parse, commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w./-]+):", MAKEFILE, re.M))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
OTHERS = [ROOT / name for name in ("mkdocs.yml", ".pre-commit-config.yaml", "CITATION.cff")]
FENCED = re.compile(r"^( *)(```+).*?^\1\2 *$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]*)`")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]


def documents() -> list[str]:
    """Markdown files that are committed or will be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    found = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return sorted(name for name in found if (ROOT / name).is_file())


# Links


def without_code(text: str) -> str:
    return INLINE.sub("", FENCED.sub("", text))


def code(text: str) -> str:
    """The code blocks and the code in lines, a line each."""
    blocks = [block[0] for block in FENCED.finditer(text)]
    return "\n".join([*blocks, *INLINE.findall(FENCED.sub("", text))])


def anchors(text: str) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ +(.+?) *$", FENCED.sub("", text), re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def broken_links(document: Path) -> list[str]:
    """The links of a markdown file to a file, or an anchor, that does not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", documents())
def test_links_between_documents_lead_somewhere(name: str):
    assert broken_links(ROOT / name) == []


def test_a_broken_link_is_found(tmp_path: Path):
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# Data, and `how` to get it\n## Twice\n## Twice\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#data-and-how-to-get-it) [c](other.md#twice-1) [d](https://x.org/#y)\n"
    code = "`[e](f)`\n```\n[g](h)\n```\n"
    page.write_text(f"{good}{code}[over two\nlines](gone.md) ![i](gone.png) [j](other.md#no-heading) [k](#l)")
    assert broken_links(page) == ["gone.md", "gone.png", "other.md#no-heading", "#l"]


# Commands


def scripts(workflow: Path) -> str:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return "\n".join(step.get("run", "") for job in jobs for step in job["steps"])


def made(text: str) -> set[str]:
    """The targets that a script makes."""
    return set(re.findall(r"(?:^|[&;]) *make (?:-C \S+ |\w+=\S+ )*([a-z.][\w./-]*)", text, re.M))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_makes_targets_that_exist(workflow: Path):
    targets = made(scripts(workflow))
    assert targets
    assert targets <= TARGETS


def test_the_workflow_of_tests_runs_what_contributors_run():
    assert made(scripts(ROOT / ".github/workflows/test.yml")) == {"test"}
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.13"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", ".github/pull_request_template.md", "docs/index.md"])
def test_a_document_names_targets_that_exist(name: str):
    assert made(code((ROOT / name).read_text())) <= TARGETS


def test_hooks_are_local_and_run_programs_of_the_environment():
    assert [repo["repo"] for repo in HOOKS] == ["local"]
    for hook in HOOKS[0]["hooks"]:
        program = Path(shlex.split(hook["entry"])[0])
        assert program.parent == Path(".venv/bin")
        assert Path(sys.executable).with_name(program.name).is_file()


def test_the_hook_locks_as_make_does_but_keeps_versions():
    (entry,) = (shlex.split(hook["entry"]) for hook in HOOKS[0]["hooks"] if hook["id"] == "lock")
    recipe = shlex.split(re.findall(r"^lock:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[0].replace("\\\n", ""))
    assert [Path(entry[0]).name, *entry[1:]] == [word for word in recipe if word != "--upgrade"]
    assert "--upgrade" in recipe


# Files that other programs read


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, *OTHERS], ids=lambda path: path.name)
def test_yaml_parses(path: Path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_has_what_github_requires(form: Path):
    values = yaml.safe_load(form.read_text())
    assert values["name"] and values["description"]
    for field in values["body"]:
        assert field["type"] == "markdown" or (field["id"] and field["attributes"]["label"])


def test_no_code_of_a_pull_request_runs_with_the_right_to_write():
    for workflow in WORKFLOWS:
        values = yaml.safe_load(workflow.read_text())
        assert values["permissions"] == {"contents": "read"}
        for job in values["jobs"].values():
            uses = [step.get("uses", "") for step in job["steps"]]
            assert "permissions" not in job or not any(use.startswith("actions/checkout") for use in uses)


def test_the_citation_has_its_required_keys_and_names_the_paper():
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= citation.keys()
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Zhang", "You", "Shi", "Gu"]
    assert paper["year"] == 2025 and "2503.18512" in paper["url"]


def test_the_newest_version_in_the_changelog_is_the_cited_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert newest == (citation["version"], str(citation["date-released"]))


def command_lines(text: str) -> set[str]:
    """The lines of code in a document, without comments, options on the next line joined to them."""
    lines = re.sub(r"\\\n", " ", code(text)).splitlines()
    return {" ".join(re.sub(r"\s# .*", "", line).split()) for line in lines}


def test_docker_runs_the_documented_commands_on_this_machine_alone():
    documented = command_lines((ROOT / "docs" / "operations.md").read_text())
    services = yaml.safe_load((ROOT / "contrib" / "team" / "compose.yaml").read_text())["services"]
    assert services.keys() == {"postgres", "mlflow", "prefect", "worker", "ray"}
    for name, service in services.items():
        command = service.get("command", "").replace("${PASSWORD}", "PASSWORD").replace("127.0.0.2", "HOST")
        assert not command or command in documented, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not re.search(r"server .*--host (?!127\.0\.0\.1)", command)


def test_make_team_runs_what_the_document_says_of_a_team():
    text = (ROOT / "docs" / "operations.md").read_text()
    sections = re.findall(r"^## (?:A team|More than one machine)\n(.*?)(?=^## )", text, re.M | re.S)
    shown = re.sub(r"sudo -u postgres|&&", "\n", "\n".join(command_lines("".join(sections))))
    programs = r"^ *((?:createuser|createdb|mlflow|prefect|python -m|ray|dvc|git)(?: [a-z][\w./-]*){1,2})"
    commands = set(re.findall(programs, shown, re.M))
    scripts = "".join((ROOT / "tests" / name).read_text() for name in ("team.py", "services.py", "test_flows.py"))
    run = " ".join(re.findall(r"[\w./@-]+", scripts))
    assert len(commands) > 15
    assert [command for command in sorted(commands) if command not in run] == []


# Pages


def test_every_package_and_module_of_the_library_is_on_an_api_page():
    shown = {name for page in ROOT.glob("docs/api/*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
    packages = {f"upsr.{path.parent.name}" for path in ROOT.glob("upsr/*/__init__.py")}
    modules = {f"upsr.{path.stem}" for path in ROOT.glob("upsr/*.py") if not path.name.startswith("__")}
    assert shown == packages | modules | {"pipelines"}


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_show_the_api(tmp_path: Path):
    (recipe,) = re.findall(r"^docs:.*\n\t(.*)\n", MAKEFILE, re.M)
    command = [sys.executable, "-m", *shlex.split(recipe), "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Upscaler.from_pretrained" in (tmp_path / "site" / "api" / "inference.html").read_text()
    assert 'href="weights/upsr-48.html"' in (tmp_path / "site" / "index.html").read_text()

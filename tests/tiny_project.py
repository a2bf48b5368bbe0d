"""A copy of the project with tiny settings, in a git repository of its own."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT, settings

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "PREFECT_"))} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip


class Project:
    """A clone of the project with tiny settings, that commands are run in."""

    def __init__(self, root: Path, weights: Path, values: dict | None = None) -> None:
        self.root = root
        files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for name in set(files.splitlines()) - {"dvc.lock"}:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        shutil.copytree(weights, root / "data" / "metric_weights")  # not fetched again
        self.set(values or settings())
        self("git", "init", "-q")
        self("git", "add", "-A")
        self("git", "commit", "-q", "-m", "tiny")

    def set(self, values: dict) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=self.root, env=ENVIRONMENT | {"PYTHONPATH": str(self.root)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __call__(self, *command: str, fails: bool = False) -> str:
        process = self.start(*command)
        output = process.communicate(timeout=400)[0]
        assert (process.returncode != 0) == fails, output
        return output

    def json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text())

    def mlflow(self, query: str) -> list[tuple]:
        with sqlite3.connect(self.root / "mlflow.db") as store:
            return store.execute(query).fetchall()

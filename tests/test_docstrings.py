"""Public functions, classes and modules have docstrings, and the docstrings name the errors raised."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

FILES = sorted(path for folder in ("upsr", "pipelines") for path in (ROOT / folder).rglob("*.py"))
NOT_NAMED = {"SystemExit", "AssertionError", "ArgumentTypeError"}
FUNCTIONS = {"main", "add"}  # the module of a stage, and the package of the commands, say what these do
TORCH = {"forward", "state_dict", "load_state_dict", "modules", "to"}
VARIANT = {"analyse", "times", "weigher", "calibrate", "energy", "logged"}  # documented by the protocol `Variant`


def own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a definition, without those of functions, classes and lambdas nested in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Definition | ast.Lambda):
            yield from own(child)


def raised(function: Function) -> set[str]:
    """Class names of the exceptions that a function raises itself; a bare `raise` and `raise error` name none."""
    names = set()
    for node in own(function):
        if isinstance(node, ast.Raise) and node.exc:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names.add(ast.unparse(error).split(".")[-1])
    return {name for name in names if name.isidentifier() and name[0].isupper()} - NOT_NAMED


def obvious(name: str) -> bool:
    """True if a definition needs no docstring of its own."""
    owner, _, last = name.rpartition(".")
    return last in (FUNCTIONS if not owner else TORCH if owner == "Variant" else TORCH | VARIANT)


def public(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods of public classes, each with its dotted name."""

    def visit(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
        for node in body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                yield from visit(node.body, prefix)

    return visit(tree.body, "")


def faults(source: str) -> tuple[list[str], list[str]]:
    """Names without a docstring, and `name: Error` for each error that the docstring does not name."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["module"]
    unnamed = []
    for name, node in public(tree):
        text = ast.get_docstring(node)
        if text is None:
            missing += [] if obvious(name) else [name]
        elif not isinstance(node, ast.ClassDef):
            unnamed += [f"{name}: {error}" for error in sorted(raised(node)) if not re.search(rf"\b{error}\b", text)]
    return missing, unnamed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_docstrings_that_name_their_errors(path: Path):
    assert faults(path.read_text(encoding="utf-8")) == ([], [])


def test_faults_are_found():
    source = """
def documented(x):
    'Raises `ConfigError`.'
    def nested(): raise KeyError(x)
    if x: raise section.ConfigError(x) from None
    try: raise ValueError
    except OSError as error: raise error
def bare(): ...
def _private(): raise ValueError(1)
class Variant:
    'A protocol.'
    def times(self): ...
    def forward(self): ...
"""
    assert faults(source) == (["module", "bare", "Variant.times"], ["documented: ValueError"])

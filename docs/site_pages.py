"""MkDocs: documents that are outside docs/ become pages, and links to them lead to these pages.

The documents link each other by their paths in the repository, so that the links work in a checkout too.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\[[^\]]*\])\(([^)\s:#]+)(#[^)\s]*)?\)")
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"} | {
    f"upsr/bundled/{card.parent.name}/README.md": f"weights/{card.parent.name}.md"
    for card in ROOT.glob("upsr/bundled/*/README.md")
}
"""Path in the repository -> path on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return LINK.sub(lambda link: _on_the_site(link, page.file.src_uri), markdown)


def _on_the_site(link: re.Match[str], page: str) -> str:
    """A link of the repository as one of the site. A file that is no page stays as text; a missing file stays broken,
    for `mkdocs build --strict` to report."""
    text, target, anchor = link[1], link[2], link[3] or ""
    source = next((path for path, name in OUTSIDE.items() if name == page), f"docs/{page}")
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if wanted in OUTSIDE or wanted.startswith("docs/"):
        there = OUTSIDE.get(wanted) or wanted.removeprefix("docs/")
        return f"{text}({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"
    return text[1:-1] if (ROOT / wanted).exists() else link[0]

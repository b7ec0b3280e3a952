"""Hooks of the site: add the results and the fidelity page, which stand outside `docs/`, to it."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("experiments/results/*.md", "experiments/results/*.png", "envs/*/FIDELITY.md")
"""Files that the site shows under the same path as in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of `OUTSIDE`."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links from a page of `docs/` to the repository's root lead into the site."""
    depth = page.file.src_uri.count("/")
    if page.file.src_uri.startswith(("experiments/", "envs/")):
        return markdown
    return markdown.replace("](" + "../" * (depth + 1), "](" + "../" * depth)

"""What the site has from outside docs/: pages and files that lie elsewhere in the repository.

A page's links are written for the repository, where they work as files. Here they become links of the site; one to a
file that the site lacks stays as it is, so that the strict build fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "deployments/README.md": "deployments.md",
}
FILES = ("LICENSE", "benchmarks/*.py", "benchmarks/results/*.json", "examples/*.toml", "examples/*/*.py")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for pattern in FILES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, f"repository/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the page's links between files of the repository into those of the site."""
    here = page.file.src_uri
    source = next((name for name, site in PAGES.items() if site == here), f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        place = PAGES.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else f"repository/{target}"
        )
        if files.get_file_from_path(place) is None:
            return found[1]
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return _LINK.sub(turned, markdown)

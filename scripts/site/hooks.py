"""How the site differs from the files that a code host shows: pages from the root, links to source, prompts in code.

The Markdown is written for a code host. Here its links to files outside `docs/` become links to the repository, and
README.md and others from the root become pages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BRANCH = "main"
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the root that become pages."""
SOURCES = {page: name for name, page in FROM_ROOT.items()}
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(#[^)\s]*)?(?=\))")
"""The target of a Markdown link to a file, and its anchor."""
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages whose files lie in the root."""
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Adapt one page: its links, and its interactive examples, which are highlighted as such."""
    uri = page.file.src_uri
    source = ROOT / SOURCES[uri] if uri in SOURCES else DOCS / uri

    def link(match: re.Match[str]) -> str:
        return _target(source, uri, match[1], config.repo_url) + (match[2] or "")

    parts = FENCED.split(markdown)
    for number, part in enumerate(parts):
        parts[number] = part.replace("```python\n>>>", "```pycon\n>>>", 1) if number % 2 else LINK.sub(link, part)
    return "".join(parts)


def _target(source: Path, uri: str, link: str, repository: str) -> str:
    """Where a link of the file `source` leads on its page `uri`: another page of the site, or the repository."""
    path = Path(os.path.normpath(source.parent / link))
    if not path.is_relative_to(ROOT) or not path.exists():
        return link  # the strict build reports it
    name = path.relative_to(ROOT).as_posix()
    if name in FROM_ROOT:
        goal = FROM_ROOT[name]
    elif path.is_file() and path.is_relative_to(DOCS) and path.suffix != ".py":
        goal = path.relative_to(DOCS).as_posix()
    else:
        return f"{repository}/{'tree' if path.is_dir() else 'blob'}/{BRANCH}/{name}"
    return Path(os.path.relpath(goal, Path(uri).parent)).as_posix()

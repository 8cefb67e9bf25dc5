"""Puts texts of the repository into pages, so that each is written once: ``{{ FILE }}`` or ``{{ FILE # Heading }}``.

A hook of MkDocs. The whole file goes in, or what is below one heading of it. Links into the repository become links
of the site where a page is there, and plain text where none is.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PLACE = re.compile(r"^\{\{ ([\w./]+)(?: # (.+?))? \}\}$", re.MULTILINE)
PAGES = {"benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return PLACE.sub(lambda place: text_of(place[1], place[2]), markdown)


def text_of(name: str, heading: str | None) -> str:
    """A file, or the part of it below a heading, with links that hold within the site."""
    text = (ROOT / name).read_text()
    if heading is not None:
        found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"{name} has no heading {heading!r}")
        text = found[2]
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)", link, text)


def link(found: re.Match[str]) -> str:
    label, target = found[1], found[2]
    target = PAGES.get(target, target)
    inside = target.removeprefix("docs/")
    return f"[{label}]({inside})" if (ROOT / "docs" / inside).is_file() else label

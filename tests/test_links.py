"""Links between the files of the documentation lead somewhere, in a clone as it is read on GitHub."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@cache
def tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text())


def targets(path: Path) -> Iterator[str]:
    """What the relative links and the images of a file name."""
    for child in (child for token in tokens(path) for child in token.children or ()):
        target = str(child.attrGet("href") or child.attrGet("src") or "")
        if target and not urlsplit(target).scheme:
            yield target


def anchors(path: Path) -> set[str]:
    """The headings of a file, as GitHub's links name them."""
    marked = zip(tokens(path), tokens(path)[1:], strict=False)
    return {anchor(title) for mark, title in marked if mark.type == "heading_open"}


def anchor(title: Token) -> str:
    words = "".join(child.content for child in title.children or ())
    return re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-")


def leads_somewhere(path: Path, target: str) -> bool:
    name, _, fragment = unquote(target).partition("#")
    other = path.parent / name if name else path
    return other.is_file() and (not fragment or fragment in anchors(other))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_relative_link_leads_to_a_file_and_a_heading_of_the_clone(path: Path) -> None:
    assert not [target for target in targets(path) if not leads_somewhere(path, target)]


def test_the_search_for_links_finds_them_and_knows_the_broken_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "## Is it `mine`?\n\n[a](#is-it-mine) [b](#no) ![c](no.png) [d](http://e.org)\n\n| [f](page.md) |\n|-|\n"
    )
    assert {target: leads_somewhere(page, target) for target in targets(page)} == {
        "#is-it-mine": True,
        "#no": False,
        "no.png": False,
        "page.md": True,
    }

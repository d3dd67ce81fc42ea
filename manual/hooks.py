"""What mkdocs calls while it builds the site: sets equations, refuses pages that fetch."""

import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from manual import equations

# What a browser loads by itself from elsewhere; a link that a reader follows is none.
FETCHED = re.compile(r'<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^\s">]+')


def on_page_content(html: str, **_: object) -> str:
    """Set the equations of a page."""
    return equations.to_mathml(html)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuse a page that needs the network to be read."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: wanted nothing that is fetched at view time; found {found[0]}")
    return output

"""Equations in TeX to MathML, which browsers set by themselves: no script, and no font to fetch."""

import re
from html import unescape

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def to_mathml(html: str) -> str:
    """`html` with what pymdownx.arithmatex marked as TeX replaced."""
    html = INLINE.sub(lambda found: convert(unescape(found[1])), html)
    return BLOCK.sub(
        lambda found: f'<div class="arithmatex">{convert(unescape(found[1]), display="block")}</div>', html
    )

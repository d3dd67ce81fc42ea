"""A command of the command line: an option is given once, and "~" is the home folder wherever it stands.

Of an option given twice click silently takes the last. A shell leaves "~" alone in --out=~/samples.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand


class Once(TyperCommand):
    """A command each of whose options is given once, unless it may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for parameter, count in Counter(given).items():
            if count > 1 and parameter.param_type_name == "option" and not parameter.multiple:
                raise typer.BadParameter(f"wanted it once, got it {count} times", ctx=ctx, param=parameter)
        rest: list[str] = super().parse_args(ctx, args)
        try:
            ctx.params.update({name: _expand(value) for name, value in ctx.params.items()})
        except RuntimeError as error:  # no such user
            raise typer.BadParameter(f"wanted a path; {error}", ctx=ctx) from error
        return rest


def _expand(value: Any) -> Any:
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(Path(value).expanduser())
    return value

"""A command of the command line that refuses an option given twice, of which click silently takes the last."""

from collections import Counter
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
        return super().parse_args(ctx, args)

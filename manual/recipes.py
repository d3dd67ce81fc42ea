"""The pages of recipes and losses, from the files in configs/recipes and the classes of the losses."""

from typing import get_args

from manual.options import options
from manual.text import code, prose, table
from trainer.distillation import time_sampling
from trainer.distillation.distance import DistanceConfig
from trainer.distillation.recipes import FOLDER, Phase, Recipe, Term, load_recipe, recipe_names
from trainer.distillation.terms import BaseTerm

INTRO = """# Recipes

`train --recipe NAME` takes one of these, or the path of a file of your own ([how to write
one](../how-to/recipe.md)). The cost is that of a row of the batch, in evaluations of the network without a backward
pass. [Recipes compared](../explanation/recipes.md) has figures; [Losses](losses.md) says what each loss compares.
"""

LOSSES = """# Losses

A recipe's term names a loss and its options. Times fall from 1, noise, to 0, data; G(x, t, s) is the student's jump
from time t to time s, and F its mean velocity ([the method](../explanation/method.md)). Equation numbers without a
source are TraFlow's.
"""


def page() -> str:
    """Every recipe: a table, the keys, then the files."""
    recipes = {name: Recipe.model_validate(load_recipe(name)) for name in recipe_names()}
    rows = [
        (f"[`{name}`](#{name})", f"{recipe.cost:.3g}", _needs(recipe), recipe.about) for name, recipe in recipes.items()
    ]
    overview = table(["recipe", "cost", "needs", "losses"], rows)
    files = [f"## {name}\n\n```yaml\n{(FOLDER / f'{name}.yaml').read_text().strip()}\n```" for name in recipes]
    keys = ["## Keys of a recipe", options(Recipe), "## Keys of a phase", options(Phase)]
    return "\n\n".join([INTRO, overview, *keys, *files])


def losses() -> str:
    """Every loss with its options, and what all of them share."""
    terms = get_args(get_args(Term)[0])
    shared = ["## Options of every loss", prose(BaseTerm.__doc__), options(BaseTerm, skip={"loss"})]
    distances = ["## Distances", prose(DistanceConfig.__doc__), options(DistanceConfig)]
    samplers = [(code(name), prose(sampler.__doc__)) for name, sampler in time_sampling.TIME_SAMPLERS.items()]
    times = ["## Times", table(["`times`", ""], samplers)]
    return "\n\n".join([LOSSES, *map(_loss, terms), *shared, *distances, *times])


def _loss(term: type[BaseTerm]) -> str:
    own = options(term, skip=set(BaseTerm.model_fields))
    return "\n\n".join(part for part in (f"## {term.model_fields['loss'].default}", prose(term.__doc__), own) if part)


def _needs(recipe: Recipe) -> str:
    states = max(term.num_states for term in recipe.terms)
    needs = {
        "images; it trains a teacher": recipe.reads == "images",
        "trajectories; it trains a teacher": (recipe.trains, recipe.reads) == ("teacher", "trajectories"),
        "velocities": recipe.needs_velocities,
        "the live teacher": recipe.needs_teacher,
        "an average": recipe.needs_ema,
        f"{states} stored state{'s' if states > 1 else ''}": states > 0,
    }
    return ", ".join(need for need, is_needed in needs.items() if is_needed)

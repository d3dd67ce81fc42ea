"""A command of a stage: an option without help is the flag of a key, which gives it help, group and default."""

from functools import cached_property
from typing import Any

from traflow_pipeline.once import Once, in_words

# The model of each stage's keys that needs no torch.
MODELS = {
    "generate": "pipeline.generation.config:GenerateConfig",
    "train": "trainer.settings:TrainSettings",
    "evaluate": "eval.config:EvaluateConfig",
}
# The keys of flags that have another name.
KEYS = {
    "generate": {
        "solver": "solver.name",
        "rtol": "solver.rtol",
        "atol": "solver.atol",
        "steps": "solver.num_steps",
    },
    "train": {
        "steps": "trainer.num_steps",
        "batch_size": "trainer.batch_size",
        "lr": "trainer.lr",
        "skip_nonfinite": "trainer.skip_nonfinite",
    },
    "evaluate": {"n": "num_samples"},
}
OTHERS = "Other options"


class StageCommand(Once):
    """The command `generate`, `train` or `evaluate`."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = OTHERS
        return option

    def describe(self, option: Any) -> Any:
        """A copy of `option`; of a key's flag with the key's sentence, choices, group and default."""
        shown = in_words(option)
        if not _is_flag(option):
            shown.rich_help_panel = OTHERS
            return shown
        key = self._keys[self._key_name(option)]
        shown.help = f"{key.sentence.replace('`', '')}{key.choices}"
        if option.param_type_name == "option":
            shown.rich_help_panel = key.group
        if key.default not in ("required", "null", "[]"):
            shown.default, shown.show_default = _shown(key.value), True
        return shown

    def flags(self, params: dict[str, Any]) -> dict[str, Any]:
        """The values of the flags of keys, by key: {"trainer.lr": 0.001}; None where a flag was not given."""
        return {self._key_name(option): params[str(option.name)] for option in self.params if _is_flag(option)}

    def assignments(self) -> dict[str, str]:
        """By the flag that a key might have, how it is set without: --weight-decay, --set trainer.weight_decay=..."""
        names = sorted(self._keys, key=lambda name: -name.count("."))
        return {f"--{name.rpartition('.')[2].replace('_', '-')}": f"--set {name}=..." for name in names}

    def _key_name(self, option: Any) -> str:
        return KEYS[str(self.name)].get(option.name, str(option.name))

    @cached_property
    def _keys(self) -> dict[str, Any]:
        """The stage's keys, which are imported only for its help, so that all else is quick."""
        from traflow_pipeline.keys import import_model, keys_of

        return {key.name: key for key in keys_of(import_model(MODELS[str(self.name)]))}


def _is_flag(option: Any) -> bool:
    return option.help is None


def _shown(value: Any) -> Any:
    """A default as it may be given: 1e-05, "1,2,4"."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else value

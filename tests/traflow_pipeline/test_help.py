"""What the command line says of itself: flags described by their keys, and every command line that is written down."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

from tests.support.command import SCRIPT, assert_one_line, call
from traflow_pipeline.cli import UsageError, app

ROOT = Path(__file__).parents[2]
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands
WRITTEN = [
    "README.md",
    "CONTRIBUTING.md",
    "docs",
    "docker",
    "configs",
    "examples",
    "pipeline/teachers",
    "eval/features",
]
LINE = re.compile(r"traflow-pipeline ([a-z]+(?: [^`#;|&\n]*)?)")


def plain(text: str) -> str:
    """A help without its frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_every_flag_of_a_key_has_a_sentence_and_every_default_is_shown(tmp_path: Path) -> None:
    said = {name: plain(call(tmp_path, name, "-h").stdout) for name in ("generate", "train", "evaluate")}
    for part in ("[default: dopri5]", "[default: 1e-05]", "[default: velocities]", "One of fp32, tf32"):
        assert part in said["generate"]
    for part in ("[default: 128]", "[default: 0.001]", "[default: anchored]", "--steps", "Other options"):
        assert part in said["train"]
    for part in ("by default 50k", "[default: 1,2,4,8]"):
        assert part in said["evaluate"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_calls_types_by_words(name: str, tmp_path: Path) -> None:
    said = call(tmp_path, name, "--help").stdout
    assert not re.search(r"<\w+(\[\w+\])?>|<=x", said), said


def test_one_thing_has_one_word() -> None:
    words = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert not words & {"--num-samples", "--num-steps", "--num-workers", "--checkpoint", "--label", "--rows"}
    for name in ("generate", "sample", "probe", "evaluate", "inspect"):
        assert "--n" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("probe --teacher digits --max-error nan", "--max-error: wanted a finite number of 0 or more, got nan"),
        ("probe --teacher digits --n many", "--n: wanted a whole number of 1 or more, got many"),
        ("inspect data --n 65", "--n: wanted a whole number from 1 to 64, got 65"),
        ("sample run --seed -1", "--seed: wanted a whole number of 0 or more, got -1"),
        ("average run --out x --sigma-rel inf", "--sigma-rel: wanted a finite number, got inf"),
        ("generate --rtol nan", "--rtol: wanted a finite number, got nan"),
        ("train --lr fast", "--lr: wanted a finite number, got fast"),
        ("sample run --n 1 --n 2", "--n: wanted it once, got it 2 times"),
        ("train --data data --out run --steps 0", "trainer.num_steps: wanted 1 or more, got 0"),
        ("evaluate run --out report --steps 1,x", "steps.1: wanted a whole number or a list, got 'x'"),
        ("config trian", "trian: wanted one of generate, train, evaluate, slurm, run, recipe; did you mean 'train'?"),
    ],
)
def test_a_value_that_is_none_is_said_in_plain_words(line: str, said: str, tmp_path: Path) -> None:
    assert_one_line(call(tmp_path, *line.split(), code=2), said)


def test_a_config_is_printed_or_written_and_taken_again(tmp_path: Path) -> None:
    printed = call(tmp_path, "config", "generate").stdout
    call(tmp_path, "config", "generate", "--out", "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == printed
    assert_one_line(call(tmp_path, "config", "generate", "--out", "mine.yaml", code=2), "mine.yaml exists")
    found = call(tmp_path, "generate", "--config", "mine.yaml", code=2)
    assert_one_line(found, "'teacher' is missing", "'n' is missing", "'out' is missing")


def test_the_shell_completes_commands_configs_and_topics() -> None:
    for words, found in (("tea", "teachers"), ("run quick", "quickstart"), ("config rec", "recipe")):
        environment = {
            **os.environ,
            "_TRAFLOW_PIPELINE_COMPLETE": "complete_bash",
            "COMP_CWORD": str(len(words.split())),
        }
        environment |= {"COMP_WORDS": f"traflow-pipeline {words}"}
        said = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
        assert found in said.stdout.split(), said


def written_down() -> Iterator[tuple[str, str]]:
    """Every command line in the documentation, configs and container files, with the name of its file."""
    for place in WRITTEN:
        paths = [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*"))
        for path in (path for path in paths if path.suffix in (".md", ".yaml", ".sh", "")):
            if path.is_file():
                text, name = re.sub(r"\\\n\s*", "", path.read_text()), str(path.relative_to(ROOT))
                yield from ((name, line) for line in LINE.findall(text) if line.split()[0] in COMMANDS)
                yield from ((name, line) for line in inline(text) if path.suffix == ".md")


def inline(text: str) -> Iterator[str]:
    """The code in running text that begins with a command and has options."""
    for token in MarkdownIt().parse(text):
        for child in token.children or ():
            if child.type == "code_inline" and child.content.split(" ")[0] in COMMANDS and " --" in child.content:
                yield child.content


def parse(line: str) -> None:
    """Raises a usage error unless every option of `line` exists and has its value."""
    words = [word for word in shlex.split(line.replace("...", "")) if word]
    command = COMMANDS[words.pop(0)]
    if words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_parser(typer.Context(command)).parse_args(args=words)


def test_every_command_line_that_is_written_down_is_one() -> None:
    lines = sorted(set(written_down()))
    assert len(lines) > 80
    faults = []
    for place, line in lines:
        try:
            parse(line)
        except UsageError as error:
            if "requires an argument" not in str(error):  # a flag that is only mentioned: `train --out`
                faults.append(f"{place}: {line}: {error!r}")
    assert not faults, "\n".join(faults)

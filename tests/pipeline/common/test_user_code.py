"""Errors of the user's own code name the line of it that raised them."""

from pathlib import Path

import pytest
import torch

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from tests.support.command import assert_one_line, call

TEACHER = """
import torch
from pipeline.teachers.teacher import Teacher
from {module}_net import net, read

def load(device):
    {read}

    def velocity(x, t, label):
        torch.zeros(1)
        return net(x)

    return Teacher("mine", "0" * 64, velocity, shape=(2,){fields})
"""
NET = """
import torch
layer = torch.nn.Linear(3, 2)

def net(x):
    if len(x) > {limit}:
        return {answer}
    return -x

def read():
    return {{}}["weights"]
"""


def write_teacher(
    folder: Path, module: str, answer: str = "layer(x)", limit: int = 0, read: str = "pass", fields: str = ""
) -> None:
    (folder / f"{module}.py").write_text(TEACHER.format(module=module, read=read, fields=fields))
    (folder / f"{module}_net.py").write_text(NET.format(answer=answer, limit=limit))


def test_a_velocity_that_raises_is_named_with_its_line_and_the_shapes_it_was_given(tmp_path: Path) -> None:
    write_teacher(tmp_path, "mine_a")
    found = call(tmp_path, "teachers", "check", "mine_a:load", "--n", 3, code=1)
    assert_one_line(
        found,
        "error: teacher mine: mine_a_net.py:7 in net: RuntimeError: ",
        "multiplied (3x2 and 3x2) (called with x [3, 2], t [3])",
    )
    flags = ("--n", 8, "--out", "data", "--executor", "inline")
    found = call(tmp_path, "generate", "--teacher", "mine_a:load", *flags, code=1)
    assert_one_line(found, "teacher mine: mine_a_net.py:7 in net: RuntimeError: ", "x [256, 2], t [256])")
    assert not list((tmp_path / "data").glob("shard-*"))


def test_a_label_is_among_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher(tmp_path, "mine_b", answer="x[:, 2]", fields=", num_classes=3")
    monkeypatch.syspath_prepend(str(tmp_path))
    velocity = load_teacher("mine_b:load").velocity
    with pytest.raises(WorkFailed, match=r"mine_b_net.py:7 in net: IndexError: .* \(called with .*, label \[4\]"):
        velocity(torch.zeros(4, 2), torch.ones(4), torch.zeros(4, dtype=torch.int64))


EMBEDDED = "torch.nn.functional.embedding(label, torch.zeros(3, 2))"
NOT_ENCODED = "torch.nn.functional.one_hot(label, 3)"


@pytest.mark.parametrize(
    ("answer", "label", "said"),
    [
        (EMBEDDED, None, r"NoneType \(called with .*t \[2\]; label is None: .* needs num_classes in its Teacher\)"),
        (EMBEDDED, [0, -1], r'IndexError: .* label \[2\]; label -1 is "no label", from takes_no_label=True: map it to'),
        (NOT_ENCODED, [0, -1], r'RuntimeError: .*; label -1 is "no label", from takes_no_label=True: map it to'),
        (
            EMBEDDED,
            [1, 3],
            r"IndexError: .* label \[2\], of 1 to 3: does its Teacher have the num_classes of the model",
        ),
        ("x @ torch.zeros(3, 2)", None, r"called with x \[2, 2\], t \[2\]\)$"),
        ("x @ torch.zeros(3, 2)", [0, -1], r"called with x \[2, 2\], t \[2\], label \[2\]\)$"),
    ],
)
def test_an_error_about_labels_says_what_the_teacher_has_to_declare(
    answer: str, label: list[int] | None, said: str
) -> None:
    namespace = {"torch": torch}
    exec(f"def velocity(x, t, label): return {answer}", namespace)
    teacher = Teacher("mine", "0" * 64, namespace["velocity"], shape=(2,), num_classes=3)  # type: ignore[arg-type]
    given = None if label is None else torch.tensor(label)
    with pytest.raises(WorkFailed, match=said):
        teacher.velocity(torch.zeros(2, 2), torch.ones(2), given)


def test_a_lack_of_memory_is_left_to_whoever_can_ask_for_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher(tmp_path, "mine_c", answer="(_ for _ in ()).throw(torch.OutOfMemoryError('full'))")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(torch.OutOfMemoryError):
        load_teacher("mine_c:load").velocity(torch.zeros(4, 2), torch.ones(4), None)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def load(device):\n    return open('no.pt')",
            r"the factory failed: .*mine_d0.py:2 in load: FileNotFoundError: ",
        ),
        ("\n1 / 0", r"wanted module:factory; .*mine_d1.py:2: ZeroDivisionError"),
        ("def (", r"wanted module:factory; SyntaxError: .*mine_d2.py, line 1"),
        ("import mine_dd", r"wanted module:factory; .*mine_d3.py:1: ModuleNotFoundError"),
        ("def load(device):\n    import json\n    json.loads('')", r"mine_d4.py:3 in load: JSONDecodeError"),
        ("def load():\n    pass", r"the factory failed: TypeError: load\(\) takes 0"),
    ],
)
def test_what_loading_raises_is_named_with_its_line(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = said.partition("mine_d")[2][:1] or "5"
    (tmp_path / f"mine_d{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=said):
        load_teacher(f"mine_d{module}:load")


def test_a_module_that_is_not_there_is_nobodys_code() -> None:
    with pytest.raises(BadInput, match="wanted module:factory; no module 'mine_e' is in this folder or installed"):
        load_teacher("mine_e:load")


@pytest.mark.parametrize("read", ["read()", "torch.load('no.pt')"])
def test_a_fault_in_another_file_of_theirs_or_in_a_library_is_at_their_innermost_line(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"mine_f{len(read)}"
    write_teacher(tmp_path, module, read=read)
    monkeypatch.syspath_prepend(str(tmp_path))
    place = f"{module}_net.py:11 in read: KeyError" if read == "read()" else f"{module}.py:7 in load: FileNotFoundError"
    with pytest.raises(BadInput, match=f"the factory failed: .*{place}"):
        load_teacher(f"{module}:load")

"""Code runs only if this user has named it."""

import sys
from pathlib import Path

import pytest

from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import read_dataset, write_dataset, write_manifest
from pipeline.generation.verify import verify
from pipeline.storage.store import open_store
from pipeline.teachers.loading import load_teacher, named_factories, resolve_recorded
from tests.support.command import assert_one_line, call
from tests.support.problems import make_data

EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\ndef factory(device): raise SystemExit\n"
MINE = "from tests.support.problems import gaussian\n"


@pytest.fixture(autouse=True)
def _own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def recorded(source: str, given: str | None = None) -> None:
    resolve_recorded(source, given, "data/plan.json", "--teacher ").load(quiet=True)


def test_a_factory_that_a_file_names_is_imported_only_once_the_user_has_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_flow_a.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="names the teacher 'my_flow_a:gaussian', code that you have not named before"):
        recorded("my_flow_a:gaussian")
    assert "my_flow_a" not in sys.modules
    recorded("whatever:else", "my_flow_a:gaussian")
    recorded("my_flow_a:gaussian")


def test_a_factory_that_is_elsewhere_comes_with_the_folder_to_work_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "my_flow_d.py").write_text(MINE)
    monkeypatch.chdir(tmp_path / "other")
    unknown = r"names the teacher 'my_flow_d:gaussian'; no module 'my_flow_d' is in this folder or installed: run this "
    with pytest.raises(
        BadInput, match=unknown + r"in the folder of my_flow_d\.py, with --teacher my_flow_d:gaussian, "
    ):
        recorded("my_flow_d:gaussian")
    monkeypatch.chdir(tmp_path / "mine")
    load_teacher("my_flow_d:gaussian")
    del sys.modules["my_flow_d"]
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(BadInput, match=f"{unknown}in {tmp_path}/mine, where you named it before"):
        recorded("my_flow_d:gaussian")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))  # as PYTHONPATH does
    recorded("my_flow_d:gaussian")


def test_projects_that_give_their_factories_one_name_do_not_lock_each_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("shapes", "tut")]
    for folder in folders:
        folder.mkdir()
        (folder / "my_shared_flow.py").write_text(MINE)
        monkeypatch.chdir(folder)
        load_teacher("my_shared_flow:gaussian")
        del sys.modules["my_shared_flow"]
    for folder in (*folders, *folders):
        monkeypatch.chdir(folder)
        recorded("my_shared_flow:gaussian")
        del sys.modules["my_shared_flow"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f"run this in {folders[1]} or {folders[0]}, where you named it before"):
        recorded("my_shared_flow:gaussian")
    (folders[1] / "my_shared_flow.py").unlink()
    with pytest.raises(BadInput, match=f"run this in {folders[0]}, where you named it before"):
        recorded("my_shared_flow:gaussian")


def test_a_factory_that_an_older_version_noted_stays_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_older_flow.py").write_text(MINE)
    monkeypatch.chdir(tmp_path / "old")
    load_teacher("my_older_flow:gaussian")
    (note,) = named_factories().iterdir()
    note.write_text(str(tmp_path / "old" / "my_older_flow.py"))  # one place, without a newline
    del sys.modules["my_older_flow"]
    monkeypatch.chdir(tmp_path / "new")
    load_teacher("my_older_flow:gaussian")
    del sys.modules["my_older_flow"]
    monkeypatch.chdir(tmp_path / "old")
    recorded("my_older_flow:gaussian")


def test_a_teacher_that_has_gone_is_not_called_code() -> None:
    with pytest.raises(
        BadInput, match=r"names the teacher '/nowhere/net\.safetensors', which is not there: --teacher PATH"
    ):
        recorded("/nowhere/net.safetensors")


def test_the_same_name_in_another_folder_is_another_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("mine", MINE), ("theirs", EVIL)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_flow_b.py").write_text(text)
    monkeypatch.chdir(tmp_path / "mine")
    load_teacher("my_flow_b:gaussian")
    del sys.modules["my_flow_b"]
    monkeypatch.chdir(tmp_path / "theirs")
    with pytest.raises(BadInput, match="not imported"):
        recorded("my_flow_b:gaussian")
    assert not (tmp_path / "theirs" / "ran").exists()


def test_the_working_folder_does_not_stand_in_for_packages_that_are_imported_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_flow_c.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    load_teacher("my_flow_c:gaussian")
    assert sys.path[0] != ""
    assert sys.path[-1] == ""


@pytest.mark.parametrize("command", ["verify", "train", "named"])
def test_a_module_in_a_strangers_data_set_never_runs(command: str, tmp_path: Path) -> None:
    data = make_data(tmp_path)
    store = open_store(str(data))
    dataset = read_dataset(store)
    assert dataset is not None
    write_dataset(store, dataset.model_copy(update={"teacher_source": "evilmod:factory"}))
    found = verify(store)
    write_manifest(found.ledger.manifest(store, found.dataset))
    (data / "evilmod.py").write_text(EVIL)
    if command == "verify":
        assert "not imported" in call(data, "verify", ".", code=1).stdout
    elif command == "train":
        assert_one_line(
            call(data, "train", "--data", ".", "--out", tmp_path / "run", "--set", "trainer.num_steps=1", code=2),
            "not imported",
            "teacher=",
        )
    else:
        refused = call(data, "probe", "--teacher", "evilmod:factory", code=2)
        assert_one_line(refused, "it lies in a data set", "move it elsewhere")
    assert not (data / "ran").exists()

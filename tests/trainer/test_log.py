from pathlib import Path

import pytest

from trainer.log import JsonLog, read_log

LINES = (
    b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xffss": 1.0}\n\xff\xfe\n[1]\n{"step": "x"}\n{"step": 3, "loss": NaN}\n'
)


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(LINES + b'{"step": 4, "lo')
    assert [line["step"] for line in read_log(path)] == [1, 2, 3]
    assert "3 of 6 lines are damaged and left out" in " ".join(capsys.readouterr().out.split())
    JsonLog(path, 2).close()
    assert [line["step"] for line in read_log(path)] == [1, 2]


def test_a_last_line_cut_short_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
    assert capsys.readouterr().out == ""

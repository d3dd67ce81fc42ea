"""What a terminal, or the file that output was redirected to, is shown."""

import io
import re

import pytest
from rich.table import Table

from pipeline.common import progress
from pipeline.common.errors import for_terminal
from pipeline.common.progress import Pace, bar, console, format_clock, say


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("name", ["cfg:100", "[b]old[/]", ":smile:", "[red]", "a:b:c"])
def test_a_name_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    table = Table("name", title=name)
    table.add_row(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 3


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("a\rb\x07", r"a\rb\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj\u202eexe", r"gpj\u202eexe"),
        ("caf\udce9", r"caf\udce9"),
        ("größe 数", "größe 数"),
    ],
)
def test_a_name_cannot_steer_the_terminal(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    table = Table("name")
    table.add_row(name)
    console.print(table)
    out = capsys.readouterr().out
    assert out.count(shown) == 2
    assert not set(out) & set("\x1b\r\x07\x9b\u202e")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/x.pkl?secret=abc: not there", "https://h/x.pkl?...: not there"),
        ("s3://b/set?sig=a&se=b, 3 shards", "s3://b/set?..., 3 shards"),
        ("'gs://b/x?token=t'", "'gs://b/x?...'"),
        ("https://me:pass@h/x", "https://me:...@h/x"),
        ("wanted key=value; is it?", "wanted key=value; is it?"),
    ],
)
def test_what_a_url_may_hide_is_not_shown(text: str, shown: str) -> None:
    assert for_terminal(text) == shown


def test_the_time_left_is_right_however_slow_the_updates_are() -> None:
    clock = Clock()
    pace = Pace(total=10, clock=clock)
    assert str(pace) == "0:00 elapsed, ? left"
    for clock.now in (100.0, 200.0):
        pace.advance(1)
    assert str(pace) == "3:20 elapsed, 13:20 left"
    clock.now = 250.0  # it falls between two updates
    assert pace.seconds_left == 750
    clock.now = 5000.0
    assert pace.seconds_left == 0


def test_what_an_earlier_run_did_does_not_make_the_rest_seem_quick() -> None:
    clock = Clock()
    pace = Pace(total=100, done=40, clock=clock)
    pace.advance(50, skipped=True)
    assert pace.seconds_left is None
    clock.now = 60.0
    pace.advance(2)
    pace.advance(3, skipped=True)
    assert pace.seconds_left == pytest.approx(5 * 30)


def test_redirected_output_has_a_line_a_minute_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    said = io.StringIO()
    with bar("work", 4) as advance:
        advance(1, "7 images/s")
        while "1/4" not in said.getvalue():
            said.write(capsys.readouterr().out)
        advance(3, "8 images/s")
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^work: 1/4, 0:00 elapsed, 0:00 left; 7 images/s$", said.getvalue(), re.MULTILINE)
    assert lines[-1] == "work: 4/4, 0:00 elapsed, 0:00 left; 8 images/s"


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (760, "12:40"), (11100, "3:05:00")])
def test_a_clock(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text

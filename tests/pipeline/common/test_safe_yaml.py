import time

import pytest

from pipeline.common.safe_yaml import MAX_BYTES, parse_yaml


def links(first: str, link: str, count: int) -> str:
    """A document whose every value repeats the one before: `link` with # for its name."""
    names = [f"a{i}: &a{i} {link.replace('#', f'*a{i - 1}')}" for i in range(1, count)]
    return "\n".join([f"a0: &a0 {first}", *names])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (links("[x, x]", "[#, #, #]", 30), "its aliases repeat too much"),
        (links("{x: 1}", "{<<: [#, #, #]}", 20), "its aliases repeat too much"),
        (f"a: &a {'x' * 20_000}\nb: [{'*a,' * 9000}]", "its aliases repeat too much"),
        (links("[x]", "[#]", 100), "nested deeper"),
        ("&a [*a]", "nested deeper"),
        ("&a {b: *a}", "nested deeper"),
        ("[" * 2000, "nested deeper"),
        ("[" * 2000 + "]" * 2000, "nested deeper"),
        ("{a," * 2000, "nested deeper"),
        ("- " * 2000 + "a", "nested deeper"),
        ("? " * 2000 + "a", "nested deeper"),
        ("x" * (MAX_BYTES + 1), "wanted at most 65536 bytes"),
        ("{a: 1, b: 2, a: 3}", "the key 'a' stands twice"),
        ("0x" + "f" * 60_000, "is no int"),
        ("1:" * 30_000 + "1", "is no int"),
        ("!!int x", "'x' is no int"),
        ("!!int ''", "'' is no int"),
        ("!!bool x", "'x' is no bool"),
        ("!!timestamp x", "'x' is no timestamp"),
        ("2001-99-99", "is no timestamp"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("*a", "found undefined alias"),
        ("a: [", "expected the node content"),
        ("\x00", "unacceptable character"),
        (b"\xe9", "unacceptable character"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_what_is_no_plain_data_is_refused_in_a_line_and_at_once(text: str | bytes, fault: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=fault) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 1


def test_aliases_and_merged_keys_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, z: [*a, *a]}"
    one, two = {"x": 1, "y": 2}, {"x": 3, "y": 2}
    assert parse_yaml(text) == {"a": one, "b": two, "c": {**two, "z": [one, one]}}


def test_an_empty_document_is_nothing() -> None:
    assert parse_yaml("") is None

from __future__ import annotations

import math

import pytest

from pauc import _ron
from pauc._ron import Component, RonError, dumps, flatten, loads


def test_values_of_every_kind() -> None:
    text = """#![enable(implicit_some)]
    // a comment /* within
    Recipe(
        a: true, b: -1_000, c: 5e-4, d: "x\\"\\u{e9}\\n", e: 'q', f: None, g: Some([1, 2,]), h: (0.3, 1),
        i: (), j: Word, /* nested /* comment */ */ k: Name(), l: Epochs(6), m: (n: .5), o: {"p": 1}, q: 0xff,
        r: r#"raw " text"#, s: -inf, r#t: 007,
    )
    """
    value = loads(text)
    assert isinstance(value, Component) and value.name == "Recipe"
    assert value == {
        "a": True, "b": -1000, "c": 0.0005, "d": 'x"é\n', "e": "q", "f": None, "g": [1, 2], "h": (0.3, 1),
        "i": (), "j": "Word", "k": {}, "l": {0: 6}, "m": {"n": 0.5}, "o": {"p": 1}, "q": 255,
        "r": 'raw " text', "s": -math.inf, "r#t": 7,
    }  # fmt: skip
    assert value["k"].name == "Name" and value["l"].name == "Epochs"
    assert math.isnan(loads("NaN")) and loads("Some(Some(1))") == 1 and isinstance(loads("1.0"), float)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("(a: 1", "line 1, column 6"),
        ("(a: 1 b: 2)", "line 1, column 7"),
        ('(\n  a: "x', "line 2, column 7"),
        ("(a: )", "line 1, column 5"),
        ("1 2", "line 1, column 3"),
        ("/* never", "line 1, column 1"),
        ('"\\q"', "line 1, column 5"),
        ("", "line 1, column 1"),
        ("{[1]: 2}", "line 1, column 6"),
        ("[" * 1000, "line 1, column 130"),
    ],
)
def test_errors_name_the_place(text: str, where: str) -> None:
    with pytest.raises(RonError, match=where):
        loads(text)


def test_written_values_are_read_back() -> None:
    value = loads("A(b: [1, 2.5], c: (0, 1), d: (e: Word), f: Epochs(2), g: None, h: true, i: 1e-7)")
    assert loads(dumps(value)) == value
    assert dumps(value) == "A(b: [1, 2.5], c: (0, 1), d: (e: Word), f: Epochs(2), g: None, h: true, i: 1e-07)"
    assert dumps({"lr": math.inf}) == "(lr: inf)"


def test_flat_paths_are_those_of_set() -> None:
    recipe = "Recipe(objective: [(term: InfoNce(t: 0.2), weight: 1), (term: KoLeo())], dims: [1, 2], at: End, x: None)"
    assert flatten(dict(_ron.loads(recipe))) == {
        "objective[0].term": "InfoNce",
        "objective[0].term.t": 0.2,
        "objective[0].weight": 1,
        "objective[1].term": "KoLeo",
        "dims": "[1, 2]",
        "at": "End",
        "x": None,
    }

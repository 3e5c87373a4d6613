"""Flags come from dataclasses: their fields, their defaults, their docstrings; refusals are one sentence."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from tyro import _errors as refusals

from attribution.cli.parsing import Names, _refuse, bind, flags
from attribution.errors import InputError


@dataclass(frozen=True)
class Inner:
    """How deep.

    Attributes:
        depth: in metres.
        seed: of the waves.
    """

    depth: float = 1.5
    seed: int = 3
    secret: int = 0


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
        kind: of water.
        names: of fish; none
            is all.
        weights: by fish.
        salt: whether there is any.
        inner: the depth.
    """

    kind: Literal["sea", "lake"] | None = None
    names: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)
    salt: bool = True
    inner: Inner = field(default_factory=Inner)
    most: int | None = None


@flags({Inner: Names("inner_", bare=("depth",), hidden=("secret",)), Settings: Names(renamed={"most": "limit"})})
def swim(where: str, seed: int = 0, box: tuple[tuple[float, float], ...] = (), *, settings: Settings) -> None:
    """Swim.

    Args:
        where: to.
        seed: of the swimmer.
        box: of water.
        settings: how.
    """
    GIVEN.append((where, seed, box, settings))


GIVEN = []


def swum(*arguments):
    GIVEN.clear()
    bind(swim, list(arguments), "swim")()
    return GIVEN[0]


def test_every_field_is_a_flag_with_its_default():
    assert swum("--where", "x") == ("x", 0, (), Settings())
    given = (
        *("--where", "x", "--seed", "1", "--box", "0", "1", "2", "3", "--kind", "lake", "--names", "a", "b"),
        *("--weights", "a", "1", "b", "2", "--no_salt", "--depth", "2", "--inner_seed", "4", "--limit", "9"),
    )
    wanted = Settings("lake", ("a", "b"), {"a": "1", "b": "2"}, False, Inner(2, 4), 9)
    assert swum(*given) == ("x", 1, ((0, 1), (2, 3)), wanted)
    assert swum(*(each.replace("_", "-") for each in given))[3] == wanted, "hyphens will do, too"


def test_help_says_what_the_docstrings_say(capsys):
    with pytest.raises(SystemExit) as left:
        bind(swim, ["--help"], "swim")
    assert not left.value.code
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for line in ("Swim.", "--inner_seed INT of the waves. (default: 3)", "of fish; none is all.", "--salt, --no_salt"):
        assert line in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--where must be given"),
        (("--where",), "--where is not possible; accepted is STR"),
        (("--where", "x", "--seed", "one"), "--seed one is not possible; accepted is INT"),
        (("--where", "x", "--limit", "ten"), "--limit ten is not possible; accepted is INT"),
        (("--where", "x", "--limit", "None"), "--limit None is not possible; accepted is INT"),
        (("--where", "x", "--depth", "deep"), "--depth deep is not possible; accepted is FLOAT"),
        (("--where", "x", "--box", "0", "1", "2"), "--box 0 1 2 is not possible; accepted is [FLOAT FLOAT"),
        (("--where", "x", "--kind", "river"), "--kind river is not possible; accepted are lake, sea"),
        (("--where", "x", "--weights", "a"), "--weights a is not possible; accepted is [STR STR"),
        (("--where", "x", "--wher", "y"), "--wher y is no flag"),
        (("--where", "x", "y"), "y is no flag, and no value of one"),
    ],
)
def test_refusals_name_the_flag_and_what_is_accepted(capsys, arguments, told):
    with pytest.raises(InputError) as caught:
        bind(swim, list(arguments), "swim")
    assert told in str(caught.value)
    assert str(caught.value).endswith("`swim --help` lists what is accepted")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_a_refusal_of_a_kind_that_is_not_known_is_a_sentence_too(monkeypatch):
    """Of another tyro, or without its word for it."""
    more = "the flags were not understood; `swim --help` lists"
    with pytest.raises(InputError, match=more):
        _refuse([], "`swim --help` lists", refusals.ParseErrorEvent("swim"))
    monkeypatch.setattr(refusals, "_fire", lambda _: None)
    with pytest.raises(InputError, match="the flags of `swim` were not understood; `swim --help` lists"):
        bind(swim, [], "swim")

"""Results to JSON and back: every kind of field, to the bit, and what is of another kind refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pytest

from spectral_core.storage.json_values import UNREADABLE, decode, encode, parse


@dataclass(frozen=True)
class Inner:
    number: float
    count: int = 7


@dataclass(frozen=True)
class Record:
    name: str
    values: npt.NDArray[np.float64]
    pair: tuple[int, float]
    inner: Inner
    anything: Any
    shown: tuple[str, ...] = ()
    maybe: Inner | None = None
    other: Optional[int] = None  # noqa: UP045
    arrays: npt.NDArray[np.float64] | None = None
    inners: Mapping[str, Inner] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)


RECORD = Record(
    name="α",
    values=np.asarray([0.1, math.nan, -math.inf]),
    pair=(3, math.inf),
    inner=Inner(5e-324, 2),
    anything=np.asarray([True, False]),
    shown=("a", "b"),
    maybe=Inner(math.nan),
    other=4,
    arrays=np.asarray([1.0]),
    inners={"x": Inner(1.5)},
    described={"loss": -math.inf, "title": "to Infinity and -Infinity", "shape": (3, (4, "b")),
               "deep": {"seed": 5, "mean": math.nan, "flag": True}},
)  # fmt: skip
ENCODED = {
    "name": "α", "values": [0.1, None, "-Infinity"], "pair": [3, "Infinity"],
    "inner": {"number": 5e-324, "count": 2}, "anything": [True, False], "shown": ["a", "b"],
    "maybe": {"number": None, "count": 7}, "other": 4, "arrays": [1.0],
    "inners": {"x": {"number": 1.5, "count": 7}},
    "described": {"loss": "-Infinity", "title": "to Infinity and -Infinity",
                  "shape": [3, [4, "b"]], "deep": {"seed": 5, "mean": None, "flag": True}},
}  # fmt: skip


def test_every_kind_of_field():
    assert encode(RECORD) == ENCODED
    found = decode(Record, parse(json.dumps(ENCODED, allow_nan=False)))
    np.testing.assert_equal(vars(found), vars(RECORD))
    assert found.values.dtype == np.float64 and found.anything.dtype == np.bool_
    assert type(found.described["deep"]["flag"]) is bool and type(found.pair[0]) is int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.float64("nan"), None),
        (np.float64("-inf"), "-Infinity"), (np.asarray([[1.0, np.inf]]), [[1.0, "Infinity"]]),
        (0.0, 0.0), (None, None), ({5: (1, 2)}, {"5": [1, 2]}),
    ],
)  # fmt: skip
def test_plain_and_numpy_values(value, expected):
    found = encode(value)
    assert found == expected and type(found) is type(expected)


def without(*names, **changes):
    return {key: value for key, value in (ENCODED | changes).items() if key not in names}


def test_what_is_missing_takes_its_default_and_what_is_unknown_is_left_out():
    optional = ("shown", "maybe", "other", "arrays", "inners", "described")
    found = decode(Record, without(*optional, new={"of": "a later version"}))
    assert (found.shown, found.maybe, found.other, found.arrays) == ((), None, None, None)
    assert found.inners == found.described == {}
    nothing = decode(Record, without(maybe=None, other=None, arrays=None))
    assert (nothing.maybe, nothing.other, nothing.arrays) == (None, None, None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, "a int in place of a Record"),
        (without("name", "inner", "shown"), "a Record without name, inner"),
        (without(name=5), "a int in place of a str"),
        (without(name=None), "a NoneType in place of a str"),
        (without(values=3), "a int in place of a list"),
        (without(values=["1"]), "a str in place of a number"),
        (without(pair={}), "a dict in place of a list"),
        (without(pair=[1, 2, 3]), "longer"),
        (without(pair=[1]), "shorter"),
        (without(pair=[1.5, 2]), "a float in place of a int"),
        (without(pair=[True, 2]), "a bool in place of a int"),
        (without(inner=[]), "a list in place of a Inner"),
        (without(inner={"number": [1]}), "a list in place of a number"),
        (without(shown=["a", 5]), "a int in place of a str"),
        (without(maybe={"count": 3}), "a Inner without number"),
        (without(inners=[]), "a list in place of a dict"),
        (without(inners={"x": 5}), "a int in place of a Inner"),
        (without(described=5), "a int in place of a dict"),
        (without(anything={}), "a dict in place of a number"),
    ],
)
def test_what_is_of_another_kind(data, said):
    with pytest.raises(UNREADABLE, match=said):
        decode(Record, data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "^NaN is not JSON$"), ("[-Infinity]", "^-Infinity is not JSON$"),
        ("1e999", "^1e999 is beyond the range of numbers$"),
        ("9" * 60 + "e999", "^9{40} is beyond the range of numbers$"),
        ("{", "Expecting"), (b"\xff", "utf-8"),
    ],
)  # fmt: skip
def test_what_is_no_strict_json(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_numbers_are_read_to_the_bit():
    assert parse(b"[0.1, 5e-324, -0.0, 1, true]") == [0.1, 5e-324, 0.0, 1, True]
    assert math.copysign(1, parse("-0.0")) == -1 and type(parse("1")) is int

"""Tables of plain text: words to the left, numbers to the right, nothing that a terminal obeys."""

import pytest

from spectral_core.reporting.text_table import printable, text_table


def test_words_to_the_left_and_numbers_to_the_right():
    rows = [["a", "1.5", "x", "9 ± 1"], ["longer", "-12.25", "y", "10 ± 2"]]
    assert text_table(["name", "α", "a word", "count"], rows) == "\n".join([
        "name         α  a word   count",
        "──────  ──────  ──────  ──────",
        "a          1.5  x        9 ± 1",
        "longer  -12.25  y       10 ± 2",
    ])  # fmt: skip


@pytest.mark.parametrize(
    "number",
    ["7", "0.5", "-3", "3e-16", "-2.5e+20", "-0.25", "nan", "inf", "-inf", "NaN", "5 %", "3 ≤ 4"],
)
def test_what_is_a_number(number):
    assert text_table(["a long header"], [[number]]).split("\n")[2] == number.rjust(13)


@pytest.mark.parametrize("word", ["1.2.3", "1/4", "conv2d", "5-", "-", "X5", "a 5", "", "infinite"])
def test_what_is_none(word):
    assert text_table(["a long header"], [[word]]).split("\n")[2] == word


def test_one_word_makes_a_column_of_words():
    assert text_table(["column"], [["x"], ["5"]]).endswith("\nx\n5")
    assert text_table(["column"], [["5"], ["x"]]).endswith("\n5\nx")


def test_no_rows_leave_the_header():
    assert text_table(["a", "bc"], []) == "a  bc\n─  ──"


def test_combining_characters_take_no_room():
    first, rule, *rest = text_table(
        ["layer", "k"], [["e\u0301te\u0301s", "1"], ["etes", "2"]]
    ).splitlines()
    assert (first, rule) == ("layer  k", "─────  ─")
    assert rest == ["e\u0301te\u0301s   1", "etes   2"]


@pytest.mark.parametrize("rows", [[["1"]], [["1", "2", "3"]], [["1", "2"], ["3"]]])
def test_a_row_of_another_length_is_not_cut(rows):
    with pytest.raises(ValueError, match="argument"):
        text_table(["a", "b"], rows)


def test_control_characters_are_spelt_out():
    assert printable("α\n\x1b[2J\ttab\u202eend") == "α\n\\x1b[2J\\ttab\\u202eend"

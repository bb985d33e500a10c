"""Numbers that a user sets: which types count, which ranges hold, and what a refusal says."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, RunConfig
from hyperflux.io.ranges import (
    as_bool,
    as_integer,
    as_number,
    count_in,
    fraction,
    integer_in,
    number_in,
    true_or_false,
    whole_number,
)

INTEGERS = [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)]
FLOATS = [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
BOOLS = [True, np.True_, np.array(True), torch.tensor(True)]
OTHERS = [
    *("7", b"7", None, [7], 7j, (), {}, np.str_("7"), np.bytes_(b"7"), np.complex64(7), np.timedelta64(7)),
    *(np.array([7]), np.array([7, 8]), np.array("7"), torch.tensor([7]), torch.tensor([7, 8]), torch.tensor(7j)),
    torch.tensor(7.0, device="meta"),
]


def refusal(check, *arguments, **how):
    with pytest.raises(InputError) as caught:
        check("name", *arguments, **how)
    message = str(caught.value)
    assert message.startswith("name: ")
    return message.removeprefix("name: ")


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_of_any_type_are_ints_and_floats(value):
    for check in (as_integer, lambda v: whole_number("n", v, 0), lambda v: integer_in("n", v, 7, 7),
                  lambda v: count_in("n", v, 1, 9)):  # fmt: skip
        assert (check(value), type(check(value))) == (7, int)
    for check in (as_number, lambda v: number_in("n", v, 0)):
        assert (check(value), type(check(value))) == (7.0, float)


@pytest.mark.parametrize("value", FLOATS, ids=repr)
def test_real_scalars_of_any_type_are_floats_and_not_ints(value):
    for check in (as_number, lambda v: number_in("n", v, 0)):
        assert (check(value), type(check(value))) == (0.5, float)
    assert as_integer(value) is None
    for check, bounds in ((whole_number, (1,)), (integer_in, (1, 9)), (count_in, (1, 9))):
        assert refusal(check, value, *bounds).endswith(" is not a whole number of at least 1")


@pytest.mark.parametrize("value", BOOLS + OTHERS, ids=repr)
def test_bools_texts_and_collections_are_no_numbers(value):
    assert as_integer(value) is None
    assert as_number(value) is None
    for check, bounds in ((whole_number, (1,)), (integer_in, (1, 9)), (count_in, (1, 9))):
        assert refusal(check, value, *bounds).endswith(" is not a whole number of at least 1")
    assert refusal(number_in, value, 0, 1).endswith(" is not a number; give a number in [0, 1)")


@pytest.mark.parametrize("value", [10.0, 0.0, np.ceil(9.2), torch.tensor(10.0)], ids=repr)
def test_a_whole_float_is_called_a_float(value):
    """That 10.0 is no whole number would be untrue."""
    assert refusal(whole_number, value, 1).endswith(" is a float; give a whole number of at least 1 as an int")


@pytest.mark.parametrize("check", [as_integer, as_number])
def test_numbers_too_large_for_a_float_are_still_ints(check):
    assert check(10**400) == (10**400 if check is as_integer else None)
    assert refusal(integer_in, 10**5000, 0, 9) == "a int is out of range; give a number at most 9"


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (whole_number, (0, 1), "0 is not a whole number of at least 1"),
        (whole_number, (np.int64(-3), 0), "-3 is not a whole number of at least 0"),
        (whole_number, ("ten", 1), "'ten' is not a whole number of at least 1"),
        (whole_number, (1 << 63, 0), f"{1 << 63} is too large; give a whole number of at most {(1 << 63) - 1}"),
        (fraction, (90,), "90 is not a fraction between 0 and 1 (both excluded); for 90 % give 0.9"),
        (fraction, (np.float32(50),), "50.0 is not a fraction between 0 and 1 (both excluded); for 50 % give 0.5"),
        (fraction, (1,), "1 is not a fraction between 0 and 1 (both excluded)"),
        (fraction, ("0.9",), "'0.9' is not a fraction between 0 and 1 (both excluded)"),
        (fraction, (math.nan,), "nan is not a fraction between 0 and 1 (both excluded)"),
        (true_or_false, (1,), "1 is neither True nor False"),
        (number_in, (10**400, 0), f"{10**96!s}... is out of range; give a number at least 0"),
        (integer_in, (-1, 0, 256), "-1 is out of range; give a number at least 0"),
        (integer_in, (257, 0, 256), "257 is out of range; give a number at most 256"),
        (count_in, (0, 1, 100_000), "0 is too few; give 1 or more"),
        (count_in, (100_001, 1, 100_000), "100001 is too many; give 100000 or fewer"),
        (count_in, (-1, 0, 9, "--dense-epochs"), "-1 is too few; give --dense-epochs 0 or more"),
        (count_in, (10, 0, 9, "--dense-epochs"), "10 is too many; give --dense-epochs 9 or fewer"),
        (number_in, (-0.5, 0), "-0.5 is out of range; give a number at least 0"),
        (number_in, (0.0, 0, math.inf, "()"), "0.0 is out of range; give a number above 0"),
        (number_in, (np.float32(1), 0, 1), "1.0 is out of range; give a number in [0, 1)"),
        (number_in, (1.5, 0, 1, "[]"), "1.5 is out of range; give a number in [0, 1]"),
        (number_in, (61, -60, 60, "[]", "it is an exponent"), "61 is out of range; it is an exponent"),
    ],
)
def test_refusals_name_the_value_and_the_way_out(check, arguments, message):
    assert refusal(check, *arguments) == message


@given(st.floats(), st.floats(-9, 9), st.floats(-9, 9), st.sampled_from(["[]", "[)", "(]", "()"]))
def test_a_number_is_in_its_range_or_refused(value, low, high, ends):
    """NaN and the infinities are in none."""
    after = value >= low if ends[0] == "[" else value > low
    before = value <= high if ends[1] == "]" else value < high
    for given_value in (value, np.float64(value)):
        if after and before:
            assert number_in("name", given_value, low, high, ends) == value
        else:
            assert "out of range" in refusal(number_in, given_value, low, high, ends)
    for never in (math.nan, math.inf, -math.inf):
        refusal(number_in, never, low, ends=ends)


def test_settings_take_numbers_of_numpy():
    settings = {"seed": np.int64(3), "sparsity": np.float64(0.9), "batch_size": np.uint16(64)}
    config = RunConfig.from_dict({**settings, "pruning": {"epochs": np.int32(5), "learning_rate": np.int64(1)}})
    assert config == RunConfig.from_dict(
        {"seed": 3, "sparsity": 0.9, "batch_size": 64, "pruning": {"epochs": 5, "learning_rate": 1.0}}
    )
    assert (type(config.seed), type(config.sparsity), type(config.pruning.learning_rate)) == (int, float, float)
    for name, value in (("seed", np.True_), ("seed", np.float64(3)), ("sparsity", np.True_), ("augment", np.int64(1))):
        with pytest.raises(InputError, match=f"{name}: .* is not "):
            RunConfig.from_dict({name: value})


@pytest.mark.parametrize("value", BOOLS, ids=repr)
def test_bools_of_any_type_are_bools(value):
    assert as_bool(value) is True
    assert true_or_false("name", value) is True


@pytest.mark.parametrize("value", [*INTEGERS, *FLOATS, *OTHERS, np.array([True])], ids=repr)
def test_nothing_else_is_a_bool(value):
    assert as_bool(value) is None


@pytest.mark.filterwarnings("error")
def test_a_tensor_with_a_gradient_is_a_number():
    assert as_number(torch.tensor(0.5, requires_grad=True)) == 0.5


def test_a_seed_may_be_of_any_size():
    assert whole_number("seed", 1 << 128, 0, most=None) == 1 << 128

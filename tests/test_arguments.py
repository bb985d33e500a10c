"""Every public callable takes each of its arguments in any odd form, or names the argument in one line."""

import inspect
import re

import pytest
from front_door_case import Material
from public_calls import ODD, calls, public_callables

from hyperflux import InputError

CALLS = calls()
USERS_OWN = {
    ("hyperflux.prune", "train_loader"): ODD,  # what a loader yields
    ("hyperflux.prune", "loss"): ("a module",),
    ("hyperflux.prune", "on_epoch"): ("a module",),
}
"""Values whose errors come from calling or reading the user's own object."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with a finished run, `run`."""
    folder = tmp_path_factory.mktemp("material")
    Material.make(folder)
    return folder


def test_every_public_callable_has_a_row_with_all_its_parameters(tmp_path):
    public = public_callables()
    assert public.keys() == CALLS.keys()
    for path, call in CALLS.items():
        expected = {name for name in inspect.signature(public[path]).parameters if name not in ("self", "cls")}
        assert call.valid(tmp_path).keys() == expected, path


@pytest.mark.parametrize("path", CALLS)
def test_the_valid_arguments_are_taken(path, material):
    call = CALLS[path]
    call.check(call.build(material)(**call.valid(material)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path in CALLS for name in inspect.signature(public_callables()[path]).parameters
                       if name not in ("self", "cls")]
)  # fmt: skip
def test_an_odd_argument_is_taken_or_named_in_one_line(path, name, material, monkeypatch):
    """Whatever is taken leaves a result that holds plain numbers, and a state that can be read."""
    monkeypatch.chdir(material)
    call, wrong = CALLS[path], []
    function = call.build(material)
    for kind, value in ODD.items():
        if kind in USERS_OWN.get((path, name), ()):
            continue
        try:
            call.check(function(**{**call.valid(material), name: value()}))
        except InputError as error:
            named = re.search(f"{name}|{call.aliases.get(name, name)}", str(error)) or str(error).startswith(
                f"{value()}:"
            )
            if "\n" in str(error) or not named:
                wrong.append(f"{kind}: does not name it: {error}")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)

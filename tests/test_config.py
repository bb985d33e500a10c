"""Settings: validation, and the round trip through TOML."""

import dataclasses
import math
import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, RunConfig, recipes
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.published import PublishedSchedule


def test_the_digits_recipe_is_the_default():
    assert RunConfig.from_dict(recipes.load("digits")) == RunConfig()


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_name_every_setting_but_those_of_the_machine(name):
    """A recipe that leaves a setting out would change with its default; what is off unless asked for may be."""
    machine = {"data_dir", "checkpoint", "device", "workers", "compile", "amp", "channels_last", "method", "controller",
               "course", "telemetry"}  # fmt: skip
    off = {"include", "exclude", "train_samples", "augment", "on_nonfinite"}
    off |= {"gates", "gate_inputs", "flops", "parameters", "latency"}
    loaded = recipes.load(name)
    everything = RunConfig.from_dict(loaded).to_dict()
    left_out = {key for key in everything if key not in loaded} - machine - off
    off_in_optimizer = {"nesterov", "decay_all"} | ({"momentum"} if loaded["optimizer"]["name"] == "adam" else set())
    for table in ("optimizer", "dense", "pruning", "regrowth"):
        left_out |= everything[table].keys() - loaded[table].keys() - off_in_optimizer
    assert left_out == set()


@given(
    st.floats(0.0005, 0.9995),
    st.integers(1, 500),
    st.integers(0, 500),
    st.integers(0, 2**32),
    st.sampled_from(["float32", "float64"]),
)
def test_round_trip_through_toml(sparsity, pruning, regrowth, seed, dtype):
    config = RunConfig.from_dict(
        {
            "sparsity": sparsity,
            "seed": seed,
            "dtype": dtype,
            "pruning": {"epochs": pruning},
            "regrowth": {"epochs": regrowth},
            "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        }
    )
    assert RunConfig.from_dict(tomllib.loads(tomli_w.dumps(config.to_dict()))) == config


def test_the_published_program_is_built_from_the_settings():
    settings = {**recipes.load("lenet300-mnist"), "controller": "published"}
    schedule = RunConfig.from_dict(settings).schedule(266_200, 469)
    assert schedule == PublishedSchedule(
        1 - 0.95, 30 * 469, 30 * 469, 30, 30, 1e-3, 0.1, 0.95, PublishedController(0.3)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "kind", "count"),
    [({}, DefaultSchedule, 13_310), ({"sparsity": 0.995, "method": "magnitude"}, MagnitudeSchedule, 1_331)],
)
def test_programs_that_keep_a_number_of_weights(settings, kind, count):
    schedule = RunConfig.from_dict({**recipes.load("lenet300-mnist"), **settings}).schedule(266_200, 469)
    assert type(schedule) is kind
    assert (schedule.total, schedule.final_count) == (266_200, count)
    assert (schedule.pruning_steps, schedule.regrowth_steps) == (30 * 469, 30 * 469)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0}, "sparsity: 0"),
        ({"sparsity": 1}, "sparsity: 1"),
        ({"sparsity": -0.5}, "sparsity: -0.5"),
        ({"sparsity": 95}, "for 95 % give 0.95"),
        ({"sparsity": math.nan}, "sparsity: nan"),
        ({"sparsity": "0.9"}, "sparsity: '0.9' is not float"),
        ({"sparsty": 0.9}, "did you mean sparsity"),
        ({"pruning": {"epoch": 3}}, "did you mean pruning.epochs"),
        ({"pruning": 3}, "pruning: 3 is not a table"),
        ({"seed": {"a": 1}}, "seed: .* is not int"),
        ({"seed": True}, "seed: True is not int"),
        ({"seed": -1}, "seed: -1"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"backend": "torhc"}, "backend 'torhc'"),
        ({"dataset": "mnits"}, "did you mean mnist"),
        ({"model": "lenet"}, "did you mean lenet300"),
        ({"model": "mlp:10"}, "two or more layer sizes"),
        ({"model": "mlp:10-0-2"}, "two or more layer sizes"),
        ({"dtype": "float16"}, "did you mean float"),
        ({"amp": "fp16"}, "amp 'fp16' is not known"),
        ({"include": "fc1"}, "include: 'fc1' is not a list of strings"),
        ({"exclude": [1]}, "not a list of strings"),
        ({"train_samples": -1}, "train_samples: -1"),
        ({"backend": "numpy", "model": "resnet20"}, "model resnet20: the NumPy backend can't; use --backend torch"),
        ({"backend": "numpy", "dataset": "cifar10"}, "data set cifar10: the NumPy backend can't"),
        ({"backend": "numpy", "exclude": ["fc1"]}, "include and exclude: the NumPy backend can't"),
        ({"backend": "numpy", "device": "cuda"}, "device cuda: the NumPy backend can't"),
        ({"optimizer": {"name": "adamw"}}, "did you mean adam"),
        ({"optimizer": {"momentum": 0.9}}, "belong to sgd"),
        ({"optimizer": {"name": "sgd", "momentum": 1.0}}, "optimizer.momentum: 1.0"),
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "needs a momentum"),
        ({"optimizer": {"weight_decay": -1.0}}, "optimizer.weight_decay: -1.0"),
        ({"dense": {"epochs": -1}}, "dense.epochs: -1"),
        ({"dense": {"learning_rate": math.nan}}, "dense.learning_rate: nan"),
        ({"dense": {"label_smoothing": 1.0}}, "dense.label_smoothing: 1.0"),
        ({"pruning": {"epochs": 0}}, "give --pruning-epochs 1"),
        ({"pruning": {"label_smoothing": -0.1}}, "pruning.label_smoothing: -0.1"),
        ({"pruning": {"controller_step": 0.0}}, "controller step: 0.0"),
        ({"pruning": {"presence_learning_rate": math.inf}}, "pruning.presence_learning_rate: inf"),
        ({"pruning": {"epochs": 60_000}, "regrowth": {"epochs": 50_000}}, "epochs: 110,030 in all stages together"),
        ({"regrowth": {"epochs": -1}}, "regrowth.epochs: -1"),
        ({"regrowth": {"presence_decay": 1.5}}, "regrowth.presence_decay: 1.5"),
        ({"regrowth": {"presence_reset": -1.0}}, "regrowth.presence_reset: -1.0"),
        ({"regrowth": {"label_smoothing": 2.0}}, "regrowth.label_smoothing: 2.0"),
    ],
)
def test_wrong_settings_are_refused_by_name_and_value_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        RunConfig.from_dict(settings)
    assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().sparsity = 2.0


def test_a_setting_that_has_gone_is_read_at_its_only_value():
    """config.toml of earlier versions states it."""
    assert RunConfig.from_dict({"moments": "full"}) == RunConfig()
    with pytest.raises(InputError, match="moments: 'bfloat16' is no longer supported"):
        RunConfig.from_dict({"moments": "bfloat16"})

"""`Pruner` under DistributedDataParallel: the same masks in every process, those of one process, or an end by name."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import run_together
from replicas import accumulated, sharded, trained, unlike

from hyperflux import InputError, RunError
from hyperflux.backends.torch.distributed import digest


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {}),
        (4, {"optimizer": "adam"}),
        (2, {"controller": "published", "optimizer": "adam"}),
        (2, {"telemetry": "off", "seed": 3}),
        (2, {"gates": "channels", "gate_inputs": True}),
    ],
    ids=str,
)
def test_masks_after_every_step_are_those_of_one_process(size, settings):
    alone, surviving = trained(**settings)
    for seen, left in run_together(trained, size, **settings):
        assert left == surviving
        assert all(np.array_equal(one, other) for one, other in zip(seen, alone, strict=True))
    assert any(not np.array_equal(one, alone[-1]) for one in alone)


def test_replicas_with_batch_statistics_of_their_own_have_the_same_masks():
    (first, left), *others = run_together(trained, 2, "convolutional")
    assert left == round(0.2 * first[0].size)
    assert all(np.array_equal(one, other) for seen, _ in others for one, other in zip(first, seen, strict=True))


def test_accumulation_and_gradients_that_are_views_of_buckets():
    first, other = run_together(accumulated, 2)
    assert all(np.array_equal(first[name], other[name]) for name in first)
    assert 0 < sum(mask.sum() for mask in first.values()) < sum(mask.size for mask in first.values())


@pytest.mark.parametrize("what", ["seed", "weights", "gradients"])
def test_replicas_that_part_ways_are_all_stopped_and_the_parameter_named(what):
    errors = run_together(unlike, 2, what)
    assert all(type(error) is RunError for error in errors), errors
    message = str(errors[0])
    assert message == str(errors[1])
    assert [error.reported_elsewhere for error in errors] == [False, True]
    assert message.startswith(("2.weight: after step ", "4.weight: after step "))
    assert "its mask on rank 1 differs from rank 0; start all ranks with the same weights" in message


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "fully_shard",
            "0.weight: is sharded (fully_shard or tensor parallelism); pruning needs whole weights",
        ),
        ("FullyShardedDataParallel", "model FullyShardedDataParallel: is sharded (FullyShardedDataParallel); pruning"),
    ],
)
def test_sharded_models_are_refused_with_the_way_out(how, message):
    for error in run_together(sharded, 2, how):
        assert type(error) is InputError, error
        assert message in str(error)
        assert str(error).endswith("as with DistributedDataParallel")


masks = st.lists(st.booleans(), min_size=1, max_size=70)


@given(masks, st.data())
def test_the_digest_knows_masks_apart(bits, data):
    mask = torch.tensor(bits)
    assert digest(mask) == digest(mask.clone())
    changed = data.draw(st.lists(st.integers(0, len(bits) - 1), min_size=1, max_size=4, unique=True))
    other = mask.clone()
    other[changed] ^= True
    assert digest(mask) != digest(other)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_the_digest_is_of_the_elements_in_order_whatever_their_layout(rows, columns, data):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    mask = mask.reshape(rows, columns)
    assert digest(mask) == digest(mask.t().contiguous().t()) == digest(mask.flatten())
    images = mask.reshape(1, rows, columns, 1).expand(2, -1, -1, 3).contiguous()
    assert digest(images) == digest(images.contiguous(memory_format=torch.channels_last))


def test_the_digest_is_not_a_sum():
    """Masks with as many weights in other places are told apart, also where whole words are exchanged."""
    pairs = [torch.cat([one, other]) for one in (torch.eye(8) > 0).unbind() for other in (torch.eye(8) > 0).unbind()]
    assert len({int(digest(pair)) for pair in pairs}) == len(pairs)

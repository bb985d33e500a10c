"""Pruning on a GPU: the same course as on the CPU, states that move between the two, and what only a GPU has."""

import pytest
import torch
from devices import needs_cuda
from networks import batches, build
from torch.nn.functional import cross_entropy

from hyperflux import Pruner, compact

SETTINGS = {"target_sparsity": 0.8, "pruning_steps": 40, "regrowth_steps": 20, "presence_lr": 0.02}


def started(kind="mlp", device="cuda", dtype=torch.float64, **optimizer):
    model = build(kind, dtype=dtype).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, **optimizer)
    return model, adam, Pruner(model, adam, **SETTINGS)


def train(model, optimizer, count, seed=0, dtype=torch.float64, amp=None, forward=None):
    place = next(model.parameters()).device
    scaler = torch.amp.GradScaler(place.type, enabled=amp is torch.float16)
    for inputs, labels in batches(count, seed=seed, dtype=dtype):
        optimizer.zero_grad()
        with torch.autocast(place.type, amp, enabled=amp is not None):
            loss = cross_entropy((forward or model)(inputs.to(place)), labels.to(place))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@needs_cuda
@pytest.mark.parametrize("kind", ["mlp", "convolutional", "transformer"])
def test_a_course_goes_the_same_way_as_on_the_cpu(kind):
    """In float64, as far as rounding allows: the counts at every step, and t to a millionth at the end."""
    courses = []
    for device in ("cpu", "cuda"):
        model, optimizer, pruner = started(kind, device)
        counts = []
        for seed in range(60):
            train(model, optimizer, 1, seed)
            counts.append(pruner.surviving)
        courses.append((counts, pruner.presence()))
    (counts, presence), (theirs, other) = courses
    assert counts == theirs
    for name, t in presence.items():
        torch.testing.assert_close(other[name].cpu(), t, rtol=1e-6, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("places", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_saved_state_goes_on_on_either_device(places, tmp_path):
    """To the bit on the same device, and with the same masks on the other."""
    model, optimizer, pruner = started(device=places[0])
    train(model, optimizer, 25)
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    again, its_optimizer, its_pruner = started(device=places[1])
    its_pruner.load_state_dict(saved[2])
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    assert all(t.device.type == places[1] for t in its_pruner.presence().values())
    for one, its in ((model, optimizer), (again, its_optimizer)):
        train(one, its, 35, seed=1)
    assert pruner.stage == its_pruner.stage == "done"
    for name, t in pruner.presence().items():
        other = its_pruner.presence()[name]
        assert torch.equal((t >= 0).cpu(), (other >= 0).cpu())
        if places[0] == places[1]:
            assert torch.equal(t, other)


@needs_cuda
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}, {"capturable": True}])
def test_mixed_precision_and_every_adam_end_at_the_exact_count(amp, how):
    model, optimizer, pruner = started("convolutional", dtype=torch.float32, **how)
    model.to(memory_format=torch.channels_last)
    train(model, optimizer, 60, dtype=torch.float32, amp=amp)
    assert pruner.stage == "done"
    assert pruner.surviving == round(0.2 * sum(mask.numel() for mask in pruner.masks().values()))


@needs_cuda
def test_a_compiled_model_ends_at_the_exact_count():
    model, optimizer, pruner = started(dtype=torch.float32)
    train(model, optimizer, 60, dtype=torch.float32, forward=torch.compile(model))
    assert pruner.stage == "done"
    assert pruner.surviving == round(0.2 * sum(mask.numel() for mask in pruner.masks().values()))


@needs_cuda
def test_a_network_on_a_gpu_is_compacted_on_the_cpu():
    model, optimizer, pruner = started()
    train(model, optimizer, 60)
    pruner.finalize()
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(compact(model.eval(), x)(x.cpu()), model(x).cpu())

"""Layers without elements, as a network built by its data may have: they are nobody's weights, and nothing warns."""

import logging

import pytest
import torch
from torch import nn

from hyperflux import Pruner, compact
from hyperflux.backends.torch.flops import count_cost
from hyperflux.deploy.sparse import sparsify
from hyperflux.deploy.sparse_file import read_sparse, write_sparse

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


class Branches(nn.Module):
    """A branch of no features, beside one of ten."""

    def __init__(self):
        super().__init__()
        self.main, self.side, self.head = nn.Linear(10, 16), nn.Linear(0, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.main(x) + self.side(x[:, :0])))


def trained(telemetry):
    """The network and its Pruner after a whole run; its state is saved and restored in the middle."""
    torch.manual_seed(0)
    model = Branches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = Pruner(
        model, optimizer, target_sparsity=0.8, pruning_steps=60, regrowth_steps=20, presence_lr=0.02,
        telemetry=telemetry,
    )  # fmt: skip
    inputs, labels = torch.randn(32, 10), torch.arange(32) % 3
    for step in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if step == 30:
            pruner.load_state_dict(pruner.state_dict())
    pruner.finalize()
    return model, pruner


@pytest.mark.parametrize("telemetry", ["off", "light", "full"])
def test_a_run_counts_and_reports_only_layers_with_elements(telemetry, caplog):
    with caplog.at_level(logging.WARNING, "hyperflux"):
        model, pruner = trained(telemetry)
    assert not [line for line in caplog.messages if "side" in line]
    assert pruner.total == 10 * 16 + 16 * 3
    assert [layer.name for layer in pruner.layers()] == ["main.weight", "head.weight"]
    assert int(model.main.weight.count_nonzero() + model.head.weight.count_nonzero()) == round(pruner.total * 0.2)
    for table in ("layers", "flips", "sample") if telemetry != "off" else ():
        assert set(pruner.telemetry()[table]["layer"]) == {"main.weight", "head.weight"}


def test_deployment_takes_the_network_as_it_is(tmp_path):
    model, _ = trained("off")
    model.eval()
    inputs = torch.randn(4, 10)
    with torch.no_grad():
        expected = model(inputs)
        torch.testing.assert_close(compact(model, inputs)(inputs), expected)
        torch.testing.assert_close(sparsify(model, inputs, 1)[0](inputs), expected)
    assert count_cost(model, inputs).parameters == 10 * 16 + 16 + 16 + 16 * 3 + 3
    write_sparse(tmp_path / "weights.safetensors", model.state_dict())
    found = read_sparse(tmp_path / "weights.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())

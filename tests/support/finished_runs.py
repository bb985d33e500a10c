"""Finished runs that never ran: networks pruned at random, in folders as `hyperflux prune` leaves them."""

import torch

from hyperflux import RunConfig
from hyperflux.backends.torch.models import build_model
from hyperflux.runs.folder import RunFolder
from hyperflux.runs.schema import Outcome
from hyperflux.schedules.base import LayerCount


def finished_run(
    folder, model="mlp:16-24-4", shape=(16,), classes=4, *, density=0.2, dtype="float32", data="synthetic"
):
    """Write the folder of a run of `model`; its weights of two and more dimensions keep a share of `density`."""
    config = RunConfig.from_dict({"dataset": data, "model": model, "sparsity": 1 - density, "dtype": dtype})
    generator = torch.Generator().manual_seed(0)
    network = build_model(model, shape, classes, seed=0)
    dense = {name: tensor.to(getattr(torch, dtype)) for name, tensor in network.state_dict().items()}
    pruned = {name: tensor.clone() for name, tensor in dense.items()}
    layers = []
    for name, tensor in pruned.items():
        if tensor.ndim > 1:
            tensor[torch.rand(tensor.shape, generator=generator) >= density] = 0
            layers.append(LayerCount(name, tensor.numel(), int(tensor.count_nonzero())))
    total, left = sum(layer.total for layer in layers), sum(layer.surviving for layer in layers)
    record = RunFolder.create(folder, config)
    record.add_tensors("dense", {name: tensor.numpy() for name, tensor in dense.items()})
    record.add_tensors("model", {name: tensor.numpy() for name, tensor in pruned.items()})
    record.finish(
        Outcome(
            method="hyperflux",
            controller="default",
            backend="torch",
            dataset=data,
            model=model,
            input_shape=list(shape),
            classes=classes,
            seed=0,
            target_sparsity=1 - density,
            final_sparsity=1 - left / total,
            surviving_weights=left,
            total_weights=total,
            dense_accuracy=0.5,
            final_accuracy=0.5,
            seconds=0.0,
            layers=layers,
            versions={},
        )
    )
    return folder

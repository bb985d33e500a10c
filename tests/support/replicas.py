"""A Pruner under DistributedDataParallel, in one of several processes or alone: what each of them comes to."""

import math

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hyperflux
from hyperflux.backends.torch.channels import latency

STEPS, BATCH = (60, 20), 12


def perceptron():
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4))


def convolutional():
    """With batch statistics, which each process takes from its own samples."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)
    )


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}
MODELS = {"perceptron": perceptron, "convolutional": convolutional}


def trained(model="perceptron", optimizer="sgd", **pruner):
    """Masks after every step as one tensor a step, and the weights left: of a process, or of one that is alone."""
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if size > 1 else 0
    torch.manual_seed(0)
    network = MODELS[model]().double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCH, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (BATCH,), generator=generator)
    own = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    replica = DistributedDataParallel(network) if size > 1 else network
    stepper = OPTIMIZERS[optimizer](network.parameters())
    if pruner.get("gates") == "channels":
        pruner["example_input"] = inputs
    settings = {"target_sparsity": 0.8, "presence_lr": 2e-2, **pruner}
    pruner = hyperflux.Pruner(replica, stepper, pruning_steps=STEPS[0], regrowth_steps=STEPS[1], **settings)
    seen = []
    for _ in range(sum(STEPS)):
        stepper.zero_grad()
        nn.functional.cross_entropy(replica(inputs[own]), labels[own]).backward()
        stepper.step()
        seen.append(torch.cat([mask.flatten() for mask in pruner.masks().values()]).numpy())
    pruner.finalize()
    return seen, pruner.surviving


def unlike(what):
    """Processes whose replicas part ways: by t's seed, by initial weights, by gradients that nobody reduces."""
    rank = distributed.get_rank()
    torch.manual_seed(rank if what == "weights" else 0)
    network = perceptron()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    pruner = hyperflux.Pruner(
        network,
        optimizer,
        target_sparsity=0.5,
        pruning_steps=40,
        regrowth_steps=0,
        presence_lr=2e-2,
        seed=rank if what == "seed" else 0,
        exclude="0",
        process_group=distributed.group.WORLD,
    )
    inputs = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(rank if what == "gradients" else 0))
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), torch.arange(BATCH) % 4).backward()
        optimizer.step()
    return pruner.surviving


def accumulated():
    """Masks after steps on gradients of two halves of a batch each, reduced once."""
    torch.manual_seed(0)
    network = perceptron().double()
    replica = DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    settings = {"target_sparsity": 0.8, "pruning_steps": 20, "regrowth_steps": 5, "presence_lr": 5e-2}
    pruner = hyperflux.Pruner(replica, optimizer, **settings)
    generator = torch.Generator().manual_seed(distributed.get_rank())
    for _ in range(25):
        optimizer.zero_grad()
        for number in range(2):
            inputs = torch.randn(4, 8, generator=generator, dtype=torch.float64)
            if number == 0:
                with replica.no_sync():
                    replica(inputs).square().sum().backward()
            else:
                replica(inputs).square().sum().backward()
        optimizer.step()
    return {name: mask.numpy() for name, mask in pruner.masks().items()}


def sharded(how):
    """What a Pruner says of a model whose weights are spread over the processes."""
    network = perceptron()
    if how == "fully_shard":
        from torch.distributed.fsdp import fully_shard

        fully_shard(network)
    else:
        from torch.distributed.fsdp import FullyShardedDataParallel

        network = FullyShardedDataParallel(network, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    hyperflux.Pruner(network, optimizer, target_sparsity=0.5, pruning_steps=10, regrowth_steps=0)


def of_weights(calls, more):
    """Times of calls by the weights of a perceptron's layers, all of them longer by so much."""
    whole = {"network": 4000, "smallest network": 1000}
    return {key: more + (whole[key] if key in whole else 100 + 4 * math.prod(key[-2:])) for key in calls}


def with_layer_times(share):
    """(layer times, masks at the end) of gates of channels whose layers each process would time differently."""
    rank = distributed.get_rank()
    latency._nanoseconds = lambda calls, wait: of_weights(calls, rank)
    torch.manual_seed(0)
    network = perceptron()
    replica = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    pruner = hyperflux.Pruner(
        replica,
        optimizer,
        gates="channels",
        latency=share,
        example_input=torch.randn(BATCH, 8),
        pruning_steps=8,
        regrowth_steps=2,
    )
    inputs = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(rank))
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(replica(inputs), torch.arange(BATCH) % 4).backward()
        optimizer.step()
    return pruner.plan.latency, {name: mask.numpy() for name, mask in pruner.masks().items()}

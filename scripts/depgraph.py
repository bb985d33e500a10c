"""Prune the dense network of a finished run with Torch-Pruning instead, to compare: whole channels, under a budget.

    pip install torch-pruning
    python3.11 scripts/depgraph.py RUN --flops 0.25
    python3.11 scripts/depgraph.py RUN --sparsity 0.9 --importance taylor --out rival.json --save

Torch-Pruning (PyPI `torch-pruning`) is the package of Fang and others 2023, "DepGraph: Towards Any Structural Pruning",
arXiv 2301.12900. It is no dependency of hyperflux. (A script of its own name would be imported in its place.)

RUN is a folder of `hyperflux prune`, of any method. Weights before pruning, data and their order, augmentation, epochs,
learning rates, optimizer, batch size and label smoothing are those of the run. In the first 70 % of the pruning stage
the cost falls linearly in equal rounds, with training in between; the rest of the stage and the regrowth stage are
fine-tuning. In a round Torch-Pruning removes the channels of least importance over all layers, one at a time, ranked
anew after each, until the cost is within the round's budget. Its pruning makes new parameters, so the optimizer is
built anew after a round, and the momentum or Adam state of the elements that stay is carried over.

Torch-Pruning removes no input features, and here none of the output layer. It takes a shortcut that pads channels for
one that does not, and would remove different channels on its two sides; the layers around such a shortcut stay whole.

Prints one line of JSON: accuracy on the test part after the last epoch, cost, and the width of each layer.
"""

from __future__ import annotations

import copy
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import torch
from hyperflux_cli.options import PlainPath
from torch import Tensor, nn

from hyperflux.backends.torch.batches import Batch, Data
from hyperflux.backends.torch.data import load_data
from hyperflux.backends.torch.finite import FiniteCheck
from hyperflux.backends.torch.flops import count_cost
from hyperflux.backends.torch.optimizers import build_optimizer
from hyperflux.backends.torch.outputs import classification_loss
from hyperflux.backends.torch.threads import threads_for, torch_threads
from hyperflux.backends.torch.training import EpochProgress, Precision, choose_device, tally, train_epoch
from hyperflux.config import RunConfig
from hyperflux.deploy.networks import load_networks
from hyperflux.errors import InputError, RunError
from hyperflux.gates.budget import UNITS, kept_share
from hyperflux.gates.kinds import Budget
from hyperflux.io.atomic_write import write_together
from hyperflux.io.ranges import count_in, fraction
from hyperflux.runs.data_order import batch_ends, epoch_batches
from hyperflux.runs.epochs import Epoch, planned_epochs
from hyperflux.runs.folder import read_run
from hyperflux.seeding import generator
from hyperflux.session.nonfinite import NonFiniteGuard, NotFiniteError

PACKAGE = "torch-pruning"
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
PRUNING_SHARE = Fraction(7, 10)
"""The share of the pruning stage's steps in which channels are removed."""
MAX_ROUNDS = 10_000
TAYLOR_BATCHES = 10
"""Batches whose gradient Taylor's importance takes, as in Torch-Pruning's own examples."""
INPUTS_STAY = "Torch-Pruning removes no input features: the budget comes from hidden units and channels alone"

Layer = Any
"""One of `LAYERS`."""
History = list[Any]
"""What a round removed, as `torch_pruning.DependencyGraph` records it."""


def torch_pruning() -> Any:
    """The package. Raises InputError where it is missing or fails on import."""
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise InputError(f"{PACKAGE} is not installed; pip install {PACKAGE}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"{PACKAGE} can't be imported ({error}); pip install -U {PACKAGE}") from error


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Linear and convolution layers by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


def widths_of(model: nn.Module) -> dict[str, int]:
    """Units or channels that each layer makes."""
    return {
        name: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for name, layer in layers_of(model).items()
    }


def weights_of(model: nn.Module) -> int:
    """Weights of all layers, without biases and norms."""
    return sum(layer.weight.numel() for layer in layers_of(model).values())


@dataclass(frozen=True)
class Target:
    """What bounds the smaller network.

    Attributes:
        budget: The budget's kind.
        share: Its share: to remove where it is the sparsity, else to keep.
        example: An input of one sample, on the model's device.
    """

    budget: Budget
    share: float
    example: Tensor

    def cost(self, model: nn.Module) -> int:
        """The cost of a network in the budget's unit."""
        if self.budget == "sparsity":
            return weights_of(model)
        cost = count_cost(model, self.example)
        return cost.dense_flops if self.budget == "flops" else cost.parameters

    def course(self, model: nn.Module, rounds: int, steps: int) -> dict[int, int]:
        """Most cost after a round, by the optimizer step that the round follows, for a stage of `steps` steps."""
        dense, kept = self.cost(model), kept_share(self.budget, self.share)
        return {
            math.ceil(PRUNING_SHARE * steps * number / rounds): int(dense * (1 - (1 - kept) * number / rounds))
            for number in range(1, rounds + 1)
        }


class ChannelPruning:
    """Torch-Pruning on one network: global ranking, the least important channels first.

    Attributes:
        model: The network, whose layers shrink.
        left_whole: Names of the layers beside the last whose channels can't be removed.
    """

    def __init__(self, model: nn.Module, target: Target, importance: Any) -> None:
        """Read the network's dependencies.

        Args:
            model: The network.
            target: In which unit cost counts.
            importance: Ranks channels; that of Taylor needs gradients.
        """
        self.model, self._target = model, target
        layers = layers_of(model)
        # As many steps as there are channels, or more, so that a step removes one at most.
        self._steps = sum(widths_of(model).values())
        self._pruner = torch_pruning().pruner.BasePruner(
            model,
            target.example,
            importance,
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=self._steps,
            ignored_layers=[list(layers.values())[-1]],
        )
        misread = self._misread()
        self._pruner.ignored_layers += misread
        self.left_whole = [name for name, layer in layers.items() if layer in misread]

    def prune(self, most: int) -> History:
        """Remove channels until the cost is at most `most`. Raises InputError if that can't be reached."""
        for _ in range(self._steps):
            if self._target.cost(self.model) <= most:
                break
            self._pruner.step()
        if (cost := self._target.cost(self.model)) > most:
            raise InputError(
                f"{self._target.budget}: {self._target.share:g} can't be reached; Torch-Pruning stops at {cost:,} "
                f"{UNITS[self._target.budget]}, and {most:,} are wanted"
            )
        return [entry for entry in self._pruner.pruning_history() if entry[2]]

    def _misread(self) -> list[Layer]:
        """Layers that make one sum but differ in width: Torch-Pruning would remove different channels in them."""
        graph, misread = self._pruner.DG, []
        for group in graph.get_all_groups(self._pruner.ignored_layers, self._pruner.root_module_types):
            made = [
                (dep.target.module, len(indices))
                for dep, indices in group
                if isinstance(dep.target.module, LAYERS) and graph.is_out_channel_pruning_fn(dep.handler)
            ]
            if any(graph.get_out_channels(layer) != count for layer, count in made):
                misread += [layer for layer, _ in made]
        return misread


def kept_elements(twin: nn.Module, history: History, example: Tensor) -> dict[str, Tensor]:
    """Where the elements of every parameter were before a round, as flat indices.

    Args:
        twin: A copy from before the round; it is pruned.
        history: What the round removed.
        example: An input of one sample.
    """
    twin = twin.cpu().double()  # which is exact for every index
    for parameter in twin.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
    graph = torch_pruning().DependencyGraph().build_dependency(twin, example.cpu().double())
    graph.load_pruning_history(history)
    return {name: parameter.detach().flatten().long() for name, parameter in twin.named_parameters()}


@dataclass
class Rival:
    """Trains and prunes the network of a run.

    Attributes:
        config: The run's settings.
        model: The network, on the device.
        data: The run's data.
        target: The budget.
        importance: "group-norm" or "taylor".
        rounds: Times that channels are removed.
    """

    config: RunConfig
    model: nn.Module
    data: Data
    target: Target
    importance: str
    rounds: int
    _optimizer: torch.optim.Optimizer = field(init=False)
    _precision: Precision = field(init=False)
    _guard: NonFiniteGuard = field(init=False)

    def __post_init__(self) -> None:
        self._optimizer = build_optimizer(self.model, self.config.optimizer)
        self._precision = Precision(self.config.amp, self.target.example.device)
        self._guard = NonFiniteGuard(self.config.on_nonfinite)

    def train(self) -> float:
        """Train and prune all epochs after the dense ones; returns the accuracy after the last.

        Raises:
            InputError: Torch-Pruning can't reach the budget.
            NotFiniteError: A loss, gradient or weight is not finite.
        """
        steps = len(batch_ends(self.data.samples, self.config.batch_size))
        course = self.target.course(self.model, self.rounds, steps * self.config.pruning.epochs)
        accuracy, done = 0.0, 0
        for epoch in planned_epochs(self.config):
            if epoch.stage == "dense":
                continue
            try:
                self._train_epoch(epoch, steps, {step - done: most for step, most in course.items()})
            except NotFiniteError as error:
                raise error.at(
                    f"in epoch {epoch.number} ({epoch.stage}); compare with a run of lower learning rates"
                ) from error
            done += steps
            tested = tally(self.model, self.data.test_batches(), self._precision)
            accuracy = tested.correct / tested.samples
            cost, unit = self.target.cost(self.model), UNITS[self.target.budget]
            progress(f"epoch {epoch.number}  {epoch.stage}  {cost:,} {unit}  accuracy {accuracy:.4f}")
        return accuracy

    def _train_epoch(self, epoch: Epoch, steps: int, course: dict[int, int]) -> None:
        """Train `steps` steps, with a round after those that `course` names."""
        loss = partial(classification_loss, label_smoothing=epoch.label_smoothing)
        batches, trained = self._batches(epoch), EpochProgress()
        ends = sorted({step for step in course if 0 < step <= steps} | {steps})
        device = self.target.example.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            drawn = generator(self.config.seed, f"randomness of epoch {epoch.number}")  # for dropout, as in the run
            torch.manual_seed(int(drawn.integers(2**62)))
            for begun, end in pairwise([0, *ends]):
                for group in self._optimizer.param_groups:
                    group["lr"] = epoch.learning_rate
                self.model.train()
                scaled = self.config.amp == "float16"
                check = FiniteCheck(self.model, self._guard, scaled=scaled, max_pending=1)
                part = islice(batches, end - begun)
                train_epoch(
                    self.model, part, self._optimizer, loss, self._precision, progress=trained, finite_check=check
                )
                if end in course:
                    self._round(course[end], epoch, loss)

    def _round(self, most: int, epoch: Epoch, loss: Callable[[Any, Any], Tensor]) -> None:
        """Remove channels, and build the optimizer anew with the state of what stays."""
        importance = torch_pruning().importance
        if self.importance == "taylor":
            self.model.eval().zero_grad()
            for inputs, labels in islice(self._batches(epoch), TAYLOR_BATCHES):
                torch.autograd.backward(loss(self.model(inputs), labels))
            ranking = importance.GroupTaylorImportance()
        else:
            ranking = importance.GroupMagnitudeImportance(p=2)
        before = {name: self._optimizer.state[parameter] for name, parameter in self.model.named_parameters()}
        twin = copy.deepcopy(self.model)
        history = ChannelPruning(self.model, self.target, ranking).prune(most)
        if not history:
            return
        kept = kept_elements(twin, history, self.target.example)
        in_layout(self.model, self.config)
        self._optimizer = build_optimizer(self.model, self.config.optimizer)
        for name, parameter in self.model.named_parameters():
            for key, value in before[name].items():
                if isinstance(value, Tensor) and value.ndim:
                    stays = value.flatten()[kept[name].to(value.device)].view(parameter.shape)
                    value = torch.empty_like(parameter).copy_(stays).detach()
                self._optimizer.state[parameter][key] = value

    def _batches(self, epoch: Epoch) -> Iterator[Batch]:
        """The run's batches of an epoch."""
        order = epoch_batches(self.config.seed, epoch.number, self.data.samples, self.config.batch_size)
        for inputs, labels in self.data.train_batches(order, epoch.number):
            if self.config.channels_last and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            yield inputs, labels


def in_layout(model: nn.Module, config: RunConfig) -> nn.Module:
    """The network with its images stored as the run stores them."""
    return model.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def progress(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def rehearse(model: nn.Module, target: Target) -> list[str]:
    """Prune a copy to the budget by magnitude, before any time is spent on training.

    Returns:
        Names of the layers beside the last whose channels can't be removed.

    Raises:
        InputError: Torch-Pruning can't prune this network, or not so far.
    """
    copied = copy.deepcopy(model)
    try:
        pruning = ChannelPruning(copied, target, torch_pruning().importance.GroupMagnitudeImportance(p=2))
        most = target.course(copied, 1, 1)[1]
        pruning.prune(most)
        with torch.no_grad():
            shapes = [network.eval()(target.example).shape for network in (model, copied)]
    except InputError:
        raise
    except Exception as error:  # a network that Torch-Pruning misreads may fail anywhere
        raise InputError(f"{PACKAGE} can't prune this network ({error}); compare on another") from error
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{PACKAGE} can't prune this network (it takes another layer for the last); compare on another"
        )
    return pruning.left_whole


def compare(run: Path, budget: Budget, share: float, importance: str, rounds: int) -> tuple[dict[str, Any], nn.Module]:
    """Prune the dense network of a run with Torch-Pruning.

    Args:
        run: The run's folder.
        budget: What bounds the smaller network.
        share: The share to keep, or to remove where it is the sparsity.
        importance: "group-norm" or "taylor".
        rounds: Times that channels are removed.

    Returns:
        The result, ready for JSON, and the smaller network on the CPU.

    Raises:
        InputError: The run can't be read, its data have changed, or Torch-Pruning can't reach the budget.
        NotFiniteError: A loss, gradient or weight is not finite.
    """
    torch_pruning()
    networks, outcome = load_networks(run), read_run(run).outcome
    config = networks.config
    if config.include or config.exclude:
        raise InputError(f"{run}: prunes chosen layers only (include, exclude), which is not compared here")
    device = choose_device(config.device)
    data = load_data(config, device)
    if (tuple(data.shape), data.classes) != (networks.shape, outcome.classes):
        raise InputError(f"{run}: its data now have other shapes or classes; bring back the data of the run")
    model = in_layout(networks.dense.to(device), config)
    target = Target(budget, share, networks.example().to(device))
    dense, weights = count_cost(model, target.example), weights_of(model)
    progress(INPUTS_STAY)
    if left_whole := rehearse(model, target):
        progress(f"Torch-Pruning misreads the shortcuts at these layers, which stay whole: {', '.join(left_whole)}")
    started = time.monotonic()
    with torch_threads(threads_for(weights, config.batch_size, device)):
        accuracy = Rival(config, model, data, target, importance, rounds).train()
    seconds = time.monotonic() - started
    cost = count_cost(model, target.example)
    result = {
        "run": str(run),
        "model": config.model,
        "dataset": config.dataset,
        "seed": config.seed,
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "importance": importance,
        "rounds": rounds,
        "budget": {budget: share},
        "accuracy": accuracy,
        "dense_accuracy": outcome.dense_accuracy,
        "parameters": cost.parameters,
        "flops": cost.dense_flops,
        "weights": weights_of(model),
        "dense": {"parameters": dense.parameters, "flops": dense.dense_flops, "weights": weights},
        "widths": widths_of(model),
        "left_whole": left_whole,
        "prunes_input_features": False,
        "seconds": round(seconds, 1),
    }
    return result, model.cpu().eval()


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("run", type=PlainPath())
@click.option("--flops", type=float, help="Share of the dense network's FLOPs to keep.")
@click.option("--parameters", type=float, help="Share of the dense network's parameters to keep.")
@click.option("--sparsity", type=float, help="Share of the weights of linear and convolution layers to remove.")
@click.option(
    "--importance",
    type=click.Choice(["group-norm", "taylor"]),
    default="group-norm",
    show_default=True,
    help="What ranks channels: the weights' squared norm, or Taylor's estimate of what they do to the loss.",
)
@click.option("--rounds", type=int, default=10, show_default=True, help="Times that channels are removed.")
@click.option("--out", type=PlainPath(), help="Also write the line of JSON to this new file.")
@click.option("--save", is_flag=True, help="Also write the network, a pickled module, next to --out with .pt added.")
def command(run: Path, importance: str, rounds: int, out: Path | None, save: bool, **shares: float | None) -> None:
    """Check the options, compare, and write the result."""
    torch_pruning()
    given: list[tuple[Any, float]] = [(name, share) for name, share in shares.items() if share is not None]
    if len(given) != 1:
        raise InputError("budget: give one of --flops, --parameters and --sparsity")
    ((budget, share),) = given
    fraction(budget, share)
    count_in("rounds", rounds, 1, MAX_ROUNDS, "--rounds")
    if save and out is None:
        raise InputError("--save: writes next to the result; add --out FILE")
    files = _new_files(out, save)
    result, model = compare(run, budget, share, importance, rounds)
    line = json.dumps(result)
    print(line)
    contents = {}
    if out is not None:
        contents[files[0].name] = f"{line}\n".encode()
        if save:
            torch.save(model, written := io.BytesIO())
            contents[files[1].name] = written.getvalue()
        write_together(out.parent, contents)


def _new_files(out: Path | None, save: bool) -> list[Path]:
    """The files to write: the result's, and the network's. Raises InputError if there is no place for one."""
    if out is None:
        return []
    files = [out, out.with_name(f"{out.name}.pt")][: 1 + save]
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: is not a folder; name a file in one with --out")
    for file in files:
        if file.exists():
            raise InputError(f"{file}: exists; name another file with --out")
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Errors are one line on standard error."""
    try:
        command.main(arguments, "depgraph", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
    except (click.ClickException, InputError, RunError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        progress(f"depgraph: {message}")
        return 1 if isinstance(error, RunError) else 2
    except (click.Abort, KeyboardInterrupt):
        progress("depgraph: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compaction: rewrite a pruned network as a smaller dense one that computes the same function.

The passes, in order:

1. `tracing` turns the module into a torch.fx graph, `unpacking` opens torch's packed transformer modules.
2. `sizes` finds several sizes of input; `trace` runs the graph on them (`execution`) and keeps an `AbstractTensor` per
   tensor; `size_dependence` tells which scalars depend on the size.
3. `registry` picks a rule (`Op`) for every call: `ops`, `data_movement`, `layers`, `batch_norm`, `attention`.
4. `analysis` propagates constants forward and liveness backward until nothing changes.
5. `driver` rewrites the graph, repeats until nothing is removed, and checks the outputs.
"""

from hyperflux.backends.torch.compact.driver import Compaction as Compaction
from hyperflux.backends.torch.compact.driver import compact as compact
from hyperflux.backends.torch.compact.driver import compaction as compaction
from hyperflux.backends.torch.compact.removed import RemovedChannels as RemovedChannels

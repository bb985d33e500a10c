"""Compaction: a pruned network as a smaller dense one that computes the same function.

`tracing` makes a graph of the module and `runs` runs it; a `Slot` is one of its tensors. `registry` hands out a rule to
every call (`ops`, `movement`, `layers`, `norms`, `attention`), `settling` finds by them what stays, and `cutting` cuts
the rest.
"""

from hyperflux.deploy.compact.cutting import Compaction as Compaction
from hyperflux.deploy.compact.cutting import Cut as Cut
from hyperflux.deploy.compact.cutting import compact as compact
from hyperflux.deploy.compact.cutting import compaction as compaction

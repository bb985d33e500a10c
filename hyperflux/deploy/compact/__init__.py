"""Compaction: a pruned network as a smaller dense one that computes the same function.

`compaction` finds what goes and cuts it, by the rules of `ops`, `movement`, `layers` and `attention`, which `registry`
hands out to the calls of a traced network (`tracing`); a `Slot` is one of its tensors.
"""

from hyperflux.deploy.compact.compaction import Compaction as Compaction
from hyperflux.deploy.compact.compaction import Cut as Cut
from hyperflux.deploy.compact.compaction import compact as compact
from hyperflux.deploy.compact.compaction import compaction as compaction

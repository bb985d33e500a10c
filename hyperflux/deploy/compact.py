"""Compaction, under its public address; the work is done in `hyperflux.backends.torch.compact`."""

from hyperflux.backends.torch.compact import Compaction as Compaction
from hyperflux.backends.torch.compact import RemovedChannels as RemovedChannels
from hyperflux.backends.torch.compact import compact as compact
from hyperflux.backends.torch.compact import compaction as compaction

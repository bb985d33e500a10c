"""The pruning law (E11): how the density at which a network settles falls with the pressure.

`fit` has the law and its uncertainty, `outliers` the points that it leaves out. `sweep` measures the points by training
networks, `saliency` what their surviving weights weigh; these two load the training driver, so they are imported by
their own names.
"""

from hyperflux.law.fit import Degree as Degree
from hyperflux.law.fit import Interval as Interval
from hyperflux.law.fit import LawComparison as LawComparison
from hyperflux.law.fit import PruningLaw as PruningLaw
from hyperflux.law.fit import compare_degrees as compare_degrees
from hyperflux.law.fit import fit_pruning_law as fit_pruning_law

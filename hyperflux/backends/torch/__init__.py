from hyperflux.backends.torch.pruner import Pruner

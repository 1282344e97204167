"""The starter models as torch modules with the weights that the project keeps."""

from zoo.architectures.loading import NAMES, WEIGHTS, labels, load

__all__ = ["NAMES", "WEIGHTS", "labels", "load"]

"""From a checkpoint and a recipe to artifacts: quantization and lowering. Knows no phones and runs no artifact."""

from pkgutil import extend_path

# a family may live in a folder of its own: any `compiler/models/` below a folder of the module search path counts
__path__ = extend_path(__path__, __name__)

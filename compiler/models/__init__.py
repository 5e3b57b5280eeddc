"""One file per model family: its geometry from a Hugging Face config, its slots, its graph in the edge dialect."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

"""One file per model family: its geometry from a Hugging Face config, its slots, its graph in the edge dialect."""

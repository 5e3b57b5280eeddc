"""From a checkpoint and a recipe to artifacts: quantization and lowering. Knows no phones and runs no artifact."""

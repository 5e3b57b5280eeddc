"""What loaders of the MLX ecosystem demand, a file for each driver."""

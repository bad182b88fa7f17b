"""The MLX target: `config.json` and `model.safetensors` in mlx-lm's own names, written with NumPy."""

"""Run as a child: whether MLX works here, proven by a small graph on its device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import msgspec

from backends.select import RuntimeFacts


def probe() -> RuntimeFacts:
    for module in ("mlx", "mlx_lm"):
        if importlib.util.find_spec(module) is None:
            return RuntimeFacts(name="mlx", reason=f"{module.replace('_', '-')} is not installed")
    from backends.mlx.device import device_name
    from backends.mlx.mlx_lm_internals import VERSION

    found = importlib.metadata.version("mlx-lm")
    if found != VERSION:
        return RuntimeFacts(name="mlx", reason=f"mlx-lm is {found}; this build needs {VERSION}")
    _run_small_graph()
    version = importlib.metadata.version("mlx")
    return RuntimeFacts(name="mlx", version=version, devices=(device_name(),))


def _run_small_graph() -> None:
    """A product with coded weights, as models have. Raises whatever the runtime raises."""
    import mlx.core as mx

    coded = mx.quantize(mx.ones((32, 64)), group_size=32, bits=4)
    product = mx.quantized_matmul(
        mx.ones((1, 64)), coded[0], scales=coded[1], biases=coded[2], group_size=32, bits=4
    )
    if abs(product[0, 31].item() - 64.0) > 1e-3:
        raise RuntimeError("a small graph gave a wrong result")


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(probe()))

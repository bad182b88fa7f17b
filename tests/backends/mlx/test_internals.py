"""What is relied on inside mlx-lm, and breaks loudly here when it has moved."""

from __future__ import annotations

import importlib.metadata
import inspect
import pathlib
import subprocess
import sys

import mlx.core as mx
import pytest

from backends.mlx import mlx_lm_internals as internals
from backends.types import EngineError
from converters.targets.mlx.models import registry
from tests.backends.mlx.engine_rig import KINDS

CACHES = internals.submodule("models.cache")


def test_the_pinned_version_is_installed():
    assert importlib.metadata.version("mlx-lm") == internals.VERSION
    assert f'"mlx-lm=={internals.VERSION}"' in pathlib.Path("pyproject.toml").read_text()


def test_single_and_batched_caches_have_what_is_called():
    for single, batched in (
        ("KVCache", "BatchKVCache"),
        ("RotatingKVCache", "BatchRotatingKVCache"),
    ):
        assert {"merge", "trim", "is_trimmable", "empty", "nbytes", "state"} <= dir_of(single)
        assert {"extend", "filter", "extract", "is_trimmable", "nbytes", "state"} <= dir_of(batched)
    for kind in ("ArraysCache", "CacheList"):
        assert {"merge", "extend", "filter", "extract", "nbytes", "state"} <= dir_of(kind)
    assert not hasattr(CACHES.ChunkedKVCache, "merge")  # why `can_batch` asks
    assert next(iter(inspect.signature(CACHES.make_prompt_cache).parameters)) == "model"


def dir_of(kind: str) -> set[str]:
    return set(dir(getattr(CACHES, kind)))


def test_the_fields_that_are_read_and_written():
    cache = CACHES.KVCache()
    cache.update_and_fetch(mx.ones((1, 2, 3, 4)), mx.ones((1, 2, 3, 4)))
    assert (cache.offset, cache.keys.shape[2] % 256) == (3, 0)
    window = CACHES.RotatingKVCache(8)
    window.update_and_fetch(mx.ones((1, 2, 3, 4)), mx.ones((1, 2, 3, 4)))
    assert (window.max_size, window.offset, window.is_trimmable()) == (8, 3, True)
    assert isinstance(CACHES.CacheList(cache, window).caches, tuple)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_positions_are_counted_from_the_caches(kind: str):
    model = internals.submodule(f"models.{KINDS[kind]['model_type']}")
    tiny = model.Model(model.ModelArgs.from_dict(KINDS[kind]))
    caches = internals.make_caches(tiny)
    tiny(mx.array([[1, 2, 3]]), cache=caches)
    internals.evaluate(caches)
    position, windows, states = internals.position_bytes(caches)
    plane = 2 * 2 * 16 * 4  # keys and values, heads, head size, fp32
    expected = {"llama": (2 * plane, 0), "windows": (plane, 5 * 32 * plane), "hybrid": (plane, 0)}
    assert (position, windows) == expected[kind]
    assert bool(states) == (kind == "hybrid")


def test_every_model_type_that_the_converter_writes_is_allowed():
    families = [*registry.FAMILIES.values(), *registry.MIXTURES.values()]
    assert {family.model_type for family in families} <= internals.MLX_MODEL_TYPES.keys()


def test_every_allowed_module_exists_and_defines_a_model():
    """In a child: so many modules are no business of this process."""
    code = (
        "from backends.mlx import mlx_lm_internals as i\n"
        "import resource, sys\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "for name in sorted(i.MLX_MODEL_TYPES.values()):\n"
        "    module = i.submodule('models.' + name)\n"
        "    module.Model, module.ModelArgs.from_dict\n"
        "assert 'transformers' not in sys.modules and 'mlx_lm.utils' not in sys.modules\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model_type", ["olmo", "muse_spark", "../evil", "", "os"])
def test_other_modules_are_never_imported(model_type: str):
    with pytest.raises(EngineError, match="no model of the type"):
        internals.build_model({"model_type": model_type, "model_file": "evil.py"}, {})

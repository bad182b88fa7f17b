"""What is kept of encoded images, within its bound."""

from __future__ import annotations

from backends.vision.vector_cache import VectorCache


def test_the_cache_keeps_to_its_bound_and_drops_what_is_oldest():
    cache = VectorCache(100)
    for name in (b"a", b"b"):
        cache.put(name, (bytes(20), bytes(20)))
    assert cache.get(b"a") is not None
    cache.put(b"c", (bytes(40),))
    assert (cache.get(b"b"), cache.held_bytes) == (None, 80)
    cache.put(b"c", (bytes(40),))
    cache.put(b"huge", (bytes(101),))
    assert (cache.held_bytes, cache.get(b"huge")) == (80, None)
    cache.put(b"d", (bytes(100),))
    assert (cache.held_bytes, cache.get(b"a"), cache.get(b"c")) == (100, None, None)

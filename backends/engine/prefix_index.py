"""Which known sequence of ids begins like a new one, and for how long. Ids only; owns no memory.

Sequences lie in a tree of blocks of `BLOCK` ids, one tree per scope, so that a look-up costs one
dictionary step per block of what is shared, however many sequences are known. Sequences of other
scopes are found only by a whole system prefix that both sides declare and that is the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

BLOCK = 32
K = TypeVar("K", bound=Hashable)


class Prefix(NamedTuple):
    """A sequence as one scope knows it; its first `system_length` ids are nobody's secret."""

    ids: Sequence[int]
    scope: str = ""
    system_length: int = 0

    @property
    def system_ids(self) -> tuple[int, ...]:
        return tuple(self.ids[: self.system_length])


class Match(NamedTuple, Generic[K]):
    """The sequence of `key` begins with the first `shared` ids asked for."""

    key: K
    shared: int


class _Node(Generic[K]):
    """`keys` are of all sequences that lead through here, `ends` of those that lead no further."""

    __slots__ = ("children", "ends", "keys")

    def __init__(self) -> None:
        self.children: dict[tuple[int, ...], _Node[K]] = {}
        self.keys: set[K] = set()
        self.ends: set[K] = set()


class PrefixIndex(Generic[K]):
    def __init__(self) -> None:
        self._known: dict[K, Prefix] = {}
        self._roots: dict[str, _Node[K]] = {}
        self._by_system: dict[tuple[int, ...], set[K]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def put(self, key: K, prefix: Prefix) -> None:
        """Known under `key` from now on, instead of what `key` stood for before."""
        self.remove(key)
        ids = tuple(prefix.ids)
        self._known[key] = prefix = prefix._replace(ids=ids)
        node = self._roots.setdefault(prefix.scope, _Node())
        node.keys.add(key)
        for block in _blocks(ids):
            node = node.children.setdefault(block, _Node())
            node.keys.add(key)
        node.ends.add(key)
        if prefix.system_length > 0:
            self._by_system.setdefault(prefix.system_ids, set()).add(key)

    def remove(self, key: K) -> None:
        """Unknown keys are a no-op."""
        prefix = self._known.pop(key, None)
        if prefix is None:
            return
        root = self._roots[prefix.scope]
        _forget(root, key, prefix.ids)
        if not root.keys:
            del self._roots[prefix.scope]
        alike = self._by_system.get(prefix.system_ids)
        if alike is not None:
            alike.discard(key)
            if not alike:
                del self._by_system[prefix.system_ids]

    def __contains__(self, key: K) -> bool:
        return key in self._known

    def prefix_of(self, key: K) -> Prefix:
        """What a known key stands for; its ids are a tuple."""
        return self._known[key]

    def matches(self, wanted: Prefix) -> list[Match[K]]:
        """The sequences that share most with `wanted`, and those that it goes on from; longest first.

        None that share nothing. What cannot be cut is of use only where all of it is shared.
        """
        found = {match.key: match for match in self._of_system(wanted)}
        found |= {match.key: match for match in self._of_scope(wanted)}
        return sorted((m for m in found.values() if m.shared > 0), key=lambda match: -match.shared)

    def _of_system(self, wanted: Prefix) -> list[Match[K]]:
        if wanted.system_length <= 0:
            return []
        keys = self._by_system.get(wanted.system_ids, ())
        return [Match(key, wanted.system_length) for key in keys]

    def _of_scope(self, wanted: Prefix) -> list[Match[K]]:
        node = self._roots.get(wanted.scope)
        if node is None:
            return []
        depth, found = 0, list[Match[K]]()
        for block in _blocks(wanted.ids):
            child = node.children.get(block)
            if child is None:
                break
            found += self._ended(node, depth, wanted)
            node, depth = child, depth + BLOCK
        tail = wanted.ids[depth : depth + BLOCK]
        return found + [
            Match(key, depth + common_length(self._known[key].ids[depth : depth + BLOCK], tail))
            for key in node.keys
        ]

    def _ended(self, node: _Node[K], depth: int, wanted: Prefix) -> list[Match[K]]:
        """The sequences that end in the block at `depth`, and that `wanted` begins with."""
        tail = tuple(wanted.ids[depth : depth + BLOCK])
        ends = [(key, self._known[key].ids[depth:]) for key in node.ends]
        return [Match(key, depth + len(end)) for key, end in ends if tail[: len(end)] == end]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _blocks(ids: Sequence[int]) -> list[tuple[int, ...]]:
    """The whole blocks of `ids`; what is left behind them is compared id by id."""
    return [tuple(ids[at : at + BLOCK]) for at in range(0, len(ids) - BLOCK + 1, BLOCK)]


def _forget(node: _Node[K], key: K, ids: Sequence[int]) -> None:
    node.keys.discard(key)
    node.ends.discard(key)
    for block in _blocks(ids):
        child = node.children[block]
        child.keys.discard(key)
        child.ends.discard(key)
        if not child.keys:
            del node.children[block]
            return
        node = child

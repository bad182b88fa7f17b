"""Grammars of answers, compiled on a thread of their own: a large schema takes a third of a second.

Posts one `GrammarReady` for each `compile`; the requests wait outside of the engine meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from backends.engine.contract import EngineCapabilities
from backends.engine.grammar import Grammar, GrammarCompiler, GrammarSpec, GrammarVocabulary
from backends.text.tokenizer import Tokenizer
from backends.types import (
    EngineError,
    RequestId,
)


class GrammarReady(msgspec.Struct, frozen=True):
    """The grammar that the request waits for, or why there is none."""

    request_id: RequestId
    grammar: Grammar | EngineError


class Grammars:
    """`end_ids` may come only where a grammar accepts."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_ids: frozenset[int],
        capabilities: EngineCapabilities,
        post: Callable[[GrammarReady], None],
    ) -> None:
        if not capabilities.grammar:
            raise EngineError("unsupported", "this engine cannot hold an answer to a format")
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._vocabulary = capabilities.vocabulary
        self._post = post
        self._compiler: GrammarCompiler | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def compile(self, request_id: RequestId, spec: GrammarSpec) -> None:
        self._thread.submit(self._compile, request_id, spec)

    def _compile(self, request_id: RequestId, spec: GrammarSpec) -> None:
        try:
            self._compiler = self._compiler or self._new_compiler()
            grammar = self._compiler.compile(spec)
        except EngineError as error:
            self._post(GrammarReady(request_id, error))
        except BaseException as error:  # noqa: BLE001  a panic in native code is no Exception
            reason = f"format cannot be honoured: {type(error).__name__}: {error}"
            self._post(GrammarReady(request_id, EngineError("invalid", reason)))
        else:
            self._post(GrammarReady(request_id, grammar))

    def _new_compiler(self) -> GrammarCompiler:
        return GrammarCompiler(
            GrammarVocabulary(
                pieces=self._tokenizer.pieces(self._vocabulary),
                special_ids=self._tokenizer.special_ids,
                end_ids=self._end_ids,
            )
        )

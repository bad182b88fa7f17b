"""How often answers held to a schema come to an end: `python -m tests.bench.grammar`.

A model of random weights knows no JSON at all; whatever it ends with `stop` must validate.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from typing import NamedTuple

import jsonschema

from backends import onnx
from backends.engine.contract import Engine
from backends.engine.grammar import GrammarCompiler, GrammarSpec, GrammarVocabulary
from backends.text.answer_grammar import answer_grammar
from backends.text.markup import Markup
from backends.text.tokenizer import Tokenizer
from backends.types import (
    Failed,
    Finished,
    GenerateRequest,
    Load,
    Sampled,
    Sampling,
)
from converters.artifact import read_artifact
from converters.convert import Request, convert
from converters.progress import Progress
from tests.bench.schemas import NamedSchema, schemas
from tests.models.random_gguf import make_gguf

MAX_TOKENS = 4096


class Outcome(NamedTuple):
    name: str
    reason: str
    tokens: int
    text: str


class Constrained:
    """An engine on random weights, and what it takes to hold its answers to schemas."""

    def __init__(self, folder: pathlib.Path, rows: int = 4, vocabulary: int = 700) -> None:
        path = make_gguf(
            folder / "m.gguf",
            types="Q8_0",
            tokenizer="gpt2",
            pre="qwen2",
            context=8192,
            vocabulary=vocabulary,
        )
        wanted = Request(source="0" * 64, target="onnx-cpu", final=folder / "artifact")
        with path.open("rb") as file:
            convert(file, wanted, Progress())
        artifact = read_artifact(wanted.final)
        self.tokenizer = Tokenizer.load(wanted.final, artifact.special)
        self.end_ids = frozenset(artifact.special.end_ids)
        load = Load(
            request_id="load", backend="onnx", artifact=str(wanted.final), rows=rows,
            context_length=8192,
        )  # fmt: skip
        self.engine: Engine = onnx.backend.load(load)
        known = GrammarVocabulary(
            pieces=self.tokenizer.pieces(artifact.vocabulary),
            special_ids=self.tokenizer.special_ids,
            end_ids=self.end_ids,
        )
        self.compiler = GrammarCompiler(known)

    def spec(self, schema: dict[str, object]) -> GrammarSpec:
        return answer_grammar(json.dumps(schema).encode(), Markup(), self.tokenizer)

    def request(self, name: str, schema: dict[str, object], seed: int, **fields) -> GenerateRequest:
        fields.setdefault("sampling", Sampling(seed=seed))
        return GenerateRequest(
            request_id=name,
            prompt_ids=self.tokenizer.encode_prompt(f"Number {seed}: give me JSON."),
            max_tokens=fields.pop("max_tokens", MAX_TOKENS),
            context_length=8192,
            end_ids=self.end_ids,
            constraint=self.compiler.compile(self.spec(schema)),
            **fields,
        )

    def run(self) -> list[Outcome]:
        """Steps until every request is done."""
        pieces: dict[str, list[bytes]] = {}
        outcomes: list[Outcome] = []
        while self.engine.has_work():
            for event in self.engine.step():
                name = event.request_id
                match event:
                    case Sampled(token_id=token_id):
                        pieces.setdefault(name, []).append(self.tokenizer.piece(token_id))
                    case Finished(reason=reason, usage=usage):
                        text = b"".join(pieces.get(name, [])).decode("utf-8", "replace")
                        outcomes.append(Outcome(name, reason, usage.completion_tokens, text))
                    case Failed(message=message):
                        outcomes.append(Outcome(name, f"failed: {message}", 0, ""))
        return outcomes


def is_valid(outcome: Outcome, schema: dict[str, object]) -> bool:
    """Whether the document is what the schema asks for; only `stop` promises it."""
    try:
        jsonschema.validate(json.loads(outcome.text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def report(outcomes: list[Outcome], wanted: list[NamedSchema], seconds: float) -> None:
    by_name = {schema.name: schema for schema in wanted}
    for is_recursive in (False, True):
        chosen = [o for o in outcomes if by_name[o.name].is_recursive == is_recursive]
        if not chosen:
            continue
        stopped = [o for o in chosen if o.reason == "stop"]
        invalid = [o.name for o in stopped if not is_valid(o, by_name[o.name].schema)]
        others = sorted({o.reason for o in chosen} - {"stop"})
        kind = "recursive" if is_recursive else "not recursive"
        tokens = sorted(o.tokens for o in chosen)
        print(
            f"{kind}: {len(stopped)} of {len(chosen)} stopped ({len(stopped) / len(chosen):.1%}), "
            f"median {tokens[len(tokens) // 2]} tokens, invalid: {invalid or 'none'}, others: {others}"
        )
    total = sum(outcome.tokens for outcome in outcomes)
    print(f"{total} tokens in {seconds:.1f} s, {total / seconds:.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.grammar", description=__doc__)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=700)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        constrained = Constrained(pathlib.Path(folder), arguments.rows, arguments.vocabulary)
        every = schemas()
        wanted = every[:: max(1, len(every) // arguments.schemas)]
        begin = time.monotonic()
        for seed, schema in enumerate(wanted):
            constrained.engine.add(constrained.request(schema.name, schema.schema, seed))
        compiled = time.monotonic()
        print(f"compiled {len(wanted)} in {compiled - begin:.2f} s")
        report(constrained.run(), wanted, time.monotonic() - compiled)
        constrained.engine.close()


if __name__ == "__main__":
    main()

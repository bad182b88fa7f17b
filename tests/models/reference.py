"""llama.cpp as the reference that parity tests compare with, through the `xllamacpp` wheel.

`LlamaCpp` loads one GGUF in float32 KV cache without flash attention on few threads, and answers by
its own HTTP server on a loopback port. Log-probabilities are the plain softmax of the raw logits,
before any sampler. Nothing is cached between calls, so equal calls give equal answers.
"""

import json
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import xllamacpp

native: Any = xllamacpp  # the extension carries no type information


# Ids, text, or text with markers and the images that stand there.
Prompt = str | list[int] | dict[str, Any]


class TokenLogprob(NamedTuple):
    """One candidate at one position, natural logarithm."""

    id: int
    logprob: float


class Step(NamedTuple):
    """One generated token and the best candidates at its position, best first."""

    id: int
    top: list[TokenLogprob]


class LlamaCpp:
    """One loaded model; use as a context manager, or `close` it."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int = 512,
        threads: int = 1,
        is_encoder: bool = False,
        adapter: str | Path | None = None,
        projector: str | Path | None = None,
    ) -> None:
        parameters = _parameters(Path(path), context, threads)
        if projector is not None:
            parameters.mmproj.path = str(projector)
            parameters.mmproj_use_gpu = False
        if adapter is not None:
            parameters.lora_adapters = [_adapter(Path(adapter))]
        if is_encoder:
            parameters.embedding = True
            parameters.n_ubatch = parameters.n_batch = context
        self._server: Any = native.Server(parameters)
        self._address: str = self._server.listening_address
        if is_encoder:
            self.embed([1])  # proves that the loop runs, as below
            return
        # Any id whose text stands alone; see `top_logprobs`.
        self._plain_id = self.tokenize("a")[-1]
        # A server that is closed before its loop runs never ends; an answer proves that it runs.
        self.greedy([self._plain_id], 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the model."""
        self._server = None

    def greedy(self, prompt_ids: list[int], count: int) -> list[int]:
        """At most `count` ids, each the most probable; an end id is the last one returned."""
        return self._complete(prompt_ids, count)["tokens"]

    def steps(self, prompt_ids: list[int], count: int, top: int = 5) -> list[Step]:
        """Greedy generation with the `top` candidates of every position, prefilled anew for each."""
        ids = self.greedy(prompt_ids, count)
        found: list[Step] = []
        for position, chosen in enumerate(ids):
            best = self.top_logprobs([*prompt_ids, *ids[:position]], top)
            found.append(Step(chosen, best))
        return found

    def top_logprobs(self, prompt_ids: Prompt, top: int = 5) -> list[TokenLogprob]:
        """The `top` candidates for the token after the prompt, best first.

        The server withholds the candidates of a token that ends inside a UTF-8 character. A bias
        makes it choose a plain one; the candidates are those of the logits before any bias.
        """
        answer = self._complete(prompt_ids, 1, top, [[self._plain_id, 1000.0]])
        entries = answer["completion_probabilities"][0]["top_logprobs"]
        return [TokenLogprob(entry["id"], entry["logprob"]) for entry in entries]

    def logprobs(self, prompt_ids: Prompt, vocabulary: int) -> npt.NDArray[np.float64]:
        """f64 [vocabulary]: log-probability of every id after the prompt."""
        row = np.full(vocabulary, -np.inf)
        for candidate in self.top_logprobs(prompt_ids, vocabulary):
            row[candidate.id] = candidate.logprob
        return row

    def rates(self, prompt_ids: list[int], count: int) -> tuple[float, float]:
        """(ids prefilled, ids decoded) a second, by llama.cpp's own clock."""
        body = {"prompt": prompt_ids, "n_predict": count, "cache_prompt": False, "ignore_eos": True}
        timings = self._post("/completion", body)["timings"]
        return timings["prompt_per_second"], timings["predicted_per_second"]

    def embed(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """f64: the pooled vector as it leaves the model, not normalised. For encoders only."""
        answer: Any = self._post("/embedding", {"content": ids, "embd_normalize": -1})
        return np.array(answer[0]["embedding"][0], np.float64)

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return self._post("/tokenize", body)["tokens"]

    def detokenize(self, ids: list[int]) -> str:
        return self._post("/detokenize", {"tokens": ids})["content"]

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """The prompt that the model's own chat template makes, ready for an answer."""
        body: dict[str, Any] = {"messages": messages}
        if tools:
            body["tools"] = tools
        return self._post("/apply-template", body)["prompt"]

    def complete(self, prompt: str | list[int], count: int) -> str:
        """Greedy continuation as text, special tokens left out; stops at an end token."""
        return self._complete(prompt, count)["content"]

    def _complete(
        self,
        prompt: Prompt,
        count: int,
        top: int = 0,
        bias: list[list[float]] | None = None,
    ) -> dict[str, Any]:
        body = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "n_probs": top,
            "return_tokens": True,
            "cache_prompt": False,
            "logit_bias": bias or [],
        }
        return self._post("/completion", body)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._address + path,
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.loads(response.read())


def _adapter(path: Path) -> Any:
    info = native.CommonAdapterLoraInfo()
    info.path, info.scale = str(path), 1.0
    return info


def _parameters(path: Path, context: int, threads: int) -> Any:
    """Quiet, single slot, float32 cache, no repacked weights: as near to plain float as it goes."""
    parameters = native.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    parameters.warmup = False
    parameters.ui = False
    parameters.fit_params = False
    parameters.no_extra_bufts = True
    parameters.ctx_shift = False
    parameters.cache_ram_mib = 0
    parameters.flash_attn_type = native.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = native.ggml_type.GGML_TYPE_F32
    parameters.cache_type_v = native.ggml_type.GGML_TYPE_F32
    return parameters

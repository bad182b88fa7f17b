"""`make optimum`: from an empty home to vectors, beside the original implementation's.

Installs the exporter, imports encoders without a recipe (random weights, safetensors, tokenizer.json),
embeds texts through a real daemon, and compares with torch in the exporter's environment. Prints the
time, the environment's size and the worst difference; fails where a vector is not the original's.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx
import numpy as np
from tokenizers import Tokenizer

from tests.e2e.daemon_process import DaemonProcess
from tests.e2e.test_foreign import ROOT
from tests.models.hugging_face_families import BERT_WORDS, ROBERTA_WORDS
from tests.models.hugging_face_tokenizers import VOCABULARY, unigram_file, word_piece_file

ORIGINAL = pathlib.Path(__file__).with_name("original.py")
SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
         "intermediate_size": 128, "vocab_size": VOCABULARY}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "distilbert": {"n_layers": 2, "dim": 64, "n_heads": 4, "hidden_dim": 128,
                   "vocab_size": VOCABULARY, "max_position_embeddings": 64},
    "electra": SIZES | {"embedding_size": 32, "max_position_embeddings": 64},
    "mpnet": SIZES | {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0,
                      "eos_token_id": 2},
}  # fmt: skip
TEXTS = [
    "A small fire in the hearth keeps the whole house warm.",
    "How many apples are in 3 boxes of 12?",
    "short",
    "Où est la bibliothèque? L'été dernier, le garçon a mangé une crème brûlée près de l'église.",
]
MOST_DIFFERENCE = 1e-5


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="optimum-") as name:
        return run(pathlib.Path(name))


def run(folder: pathlib.Path) -> int:
    daemon = DaemonProcess(folder / "home")
    began = time.monotonic()
    hearth(daemon, "optimum", "install")
    print(f"installed from empty in {time.monotonic() - began:.0f} s")
    print(hearth(daemon, "optimum", "status").strip())
    python = folder / "home" / "optimum" / "bin" / "python"
    worst = 0.0
    with daemon:
        for kind in MODELS:
            began = time.monotonic()
            source = make_model(python, folder / kind, kind)
            hearth(daemon, "import", "--optimum", str(source), kind)
            seconds = time.monotonic() - began
            difference = compare(daemon, python, source, kind)
            worst = max(worst, difference)
            print(
                f"{kind}: made and imported in {seconds:.0f} s, worst difference {difference:.1e}"
            )
    print("equal" if worst < MOST_DIFFERENCE else f"NOT EQUAL: {worst}")
    return int(worst >= MOST_DIFFERENCE)


def hearth(daemon: DaemonProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "daemon", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=daemon.environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def make_model(python: pathlib.Path, folder: pathlib.Path, kind: str) -> pathlib.Path:
    folder.mkdir()
    sizes = json.dumps(MODELS[kind])
    subprocess.run([python, ORIGINAL, "make", kind, folder, sizes], check=True)
    file = unigram_file() if kind == "mpnet" else word_piece_file()
    words = ROBERTA_WORDS if kind == "mpnet" else BERT_WORDS
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def compare(daemon: DaemonProcess, python: pathlib.Path, source: pathlib.Path, model: str) -> float:
    """The worst difference of any number of any vector; all texts in one request, and each alone."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = json.dumps([tokenizer.encode(text).ids for text in TEXTS])
    told = subprocess.run(
        [python, ORIGINAL, "embed", source],
        input=ids,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    expected = np.array(json.loads(told.stdout))
    together = embed(daemon, model, TEXTS)
    alone = np.concatenate([embed(daemon, model, [text]) for text in TEXTS])
    return float(max(np.abs(together - expected).max(), np.abs(alone - expected).max()))


def embed(daemon: DaemonProcess, model: str, texts: list[str]) -> np.ndarray:
    body = {"model": model, "input": texts}
    answer = httpx.post(f"{daemon.url}/api/embed", json=body, timeout=120, trust_env=False)
    return np.array(answer.raise_for_status().json()["embeddings"])


if __name__ == "__main__":
    sys.exit(main())

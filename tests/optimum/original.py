"""Runs in optimum's environment: makes a random model, and says what the original's vectors are.

`make KIND FOLDER CONFIG` saves safetensors and config.json; `embed FOLDER` reads ids as JSON (a list
of lists) and prints the mean of each text's hidden states, of unit length. Each text alone: no padding.
"""

import json
import sys

import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoConfig, AutoModel


def make(kind: str, folder: str, sizes: str) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **json.loads(sizes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    model.save_pretrained(folder, safe_serialization=True)


def embed(folder: str) -> None:
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    vectors = []
    with torch.no_grad():
        for ids in json.load(sys.stdin):
            given = torch.tensor([ids])
            hidden = model(input_ids=given, attention_mask=torch.ones_like(given))
            mean = hidden.last_hidden_state[0].double().mean(0)
            vectors.append((mean / mean.norm()).tolist())
    print(json.dumps(vectors))


if __name__ == "__main__":
    {"make": make, "embed": embed}[sys.argv[1]](*sys.argv[2:])

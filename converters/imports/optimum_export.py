"""Exports an encoder to ONNX with optimum-onnx; runs by file name in that package's own environment.

Imports nothing of ours but the confinement, which needs the standard library only. The folder's
configuration and safetensors are read by transformers; code in the folder is never run, and the
network is not asked. The graph is run beside the original on texts of unlike lengths before it
counts. Prints JSON lines as `python -m converters` does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
from typing import Any

GRAPH = "model.onnx"
DATA_BYTES = 64 << 30
FILE_BYTES = 64 << 30
CPU_SECONDS = 4 * 3600
# Of the largest number of the original; fp32 sums in another order differ by less.
MOST_DIFFERENCE = 1e-4
_LENGTHS = (7, 3)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    options = parser.parse_args()
    _confine(options.input, options.output)
    sys.stdout, told = sys.stderr, sys.stdout  # what libraries print must not become a line
    try:
        answer = export(options.input, options.output)
    except Exception as error:  # noqa: BLE001  the parent needs a line, whatever it is
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        print(json.dumps({"error": reason[0][:400]}), file=told, flush=True)
        return 3
    print(json.dumps(answer), file=told, flush=True)
    return 0


def _confine(source: pathlib.Path, output: pathlib.Path) -> None:
    """As the converter: only these two are within reach, and no network."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from converters.confinement import confine, die_with_parent

    die_with_parent()
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "ORT_DISABLE_TELEMETRY",
    ):
        os.environ[name] = "1"
    os.environ["HF_HOME"] = os.environ["TMPDIR"] = str(output)
    confine(
        read=[source.resolve()],
        write=[output.resolve()],
        data_bytes=DATA_BYTES,
        file_bytes=FILE_BYTES,
        cpu_seconds=CPU_SECONDS,
    )


def export(source: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Writes `model.onnx`; says what it takes, how wide its vectors are, how far off it was."""
    with contextlib.redirect_stdout(sys.stderr):
        from optimum.exporters.onnx import (  # pyright: ignore[reportMissingImports]
            main_export,
        )

        main_export(
            str(source),
            output,
            task="feature-extraction",
            library_name="transformers",
            framework="pt",
            local_files_only=True,
            trust_remote_code=False,
            do_validation=False,
            use_safetensors=True,
        )
        return _checked(source, output)


def _checked(source: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Runs both on one padded batch; where there is text, the numbers must be the same."""
    import torch  # pyright: ignore[reportMissingImports]
    from optimum.onnxruntime import (  # pyright: ignore[reportMissingImports]
        ORTModelForFeatureExtraction,
    )
    from transformers import AutoModel

    original = AutoModel.from_pretrained(
        source, local_files_only=True, trust_remote_code=False, use_safetensors=True
    ).eval()
    exported = ORTModelForFeatureExtraction.from_pretrained(output, file_name=GRAPH)
    names = sorted(exported.input_names)
    torch.manual_seed(0)
    vocabulary = int(original.config.vocab_size)
    ids = torch.randint(min(10, vocabulary - 1), vocabulary, (len(_LENGTHS), max(_LENGTHS)))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(_LENGTHS):
        mask[row, :length] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    batch = {name: batch[name] for name in names}
    with torch.no_grad():
        expected = original(**batch).last_hidden_state
    found = exported(**batch).last_hidden_state
    is_text = mask.bool()
    difference = float((expected - found)[is_text].abs().max())
    largest = float(expected[is_text].abs().max())
    if not difference <= MOST_DIFFERENCE * largest:
        raise ValueError(f"the exported graph is off by {difference:g} of {largest:g}")
    return {
        "done": True,
        "inputs": names,
        "width": int(expected.shape[-1]),
        "positions": _positions(original),
        "model_type": str(original.config.model_type),
        "difference": difference,
    }


def _positions(original: Any) -> int:
    """Ids of a text at most: some models count positions from the padding id on."""
    longest = int(getattr(original.config, "max_position_embeddings", 0) or 0)
    table = getattr(getattr(original, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return max(0, longest - (0 if padding is None else padding + 1))


if __name__ == "__main__":
    sys.exit(main())

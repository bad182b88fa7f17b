"""Prints kind × target for images: `python -m tests.parity.vision_table [--types F16] [kind …]`.

The worst difference among llama.cpp's best five log-probabilities after prompts with images (see
`test_seeing`), and whether the positions are as many and the greedy ids the same.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

from backends.types import EngineError
from converters.errors import ConversionError
from tests.models.random_vision_towers import TOWERS
from tests.parity.seeing import TARGETS, Seeing
from tests.parity.test_seeing import COUNT, Case, made, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="F32", help="GGML type of the projector's matrices")
    parser.add_argument("kinds", nargs="*", default=list(TOWERS))
    arguments = parser.parse_args()
    print(f"| {arguments.types} | " + " | ".join(TARGETS) + " |")
    print("|---" * (len(TARGETS) + 1) + "|")
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            case = made(pathlib.Path(folder), kind, arguments.types)
            cells = [cell(case, target) for target in TARGETS]
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


def cell(case: Case, target: str) -> str:
    try:
        with Seeing(case.text, case.projector, target) as model:
            return told(model, case)
    except (ConversionError, EngineError) as error:
        return f"refused: {error}"


def told(model: Seeing, case: Case) -> str:
    """The worst of all prompts, then what differs beside."""
    differences: list[float] = []
    notes: set[str] = set()
    for name, prompt in case.prompts.items():
        found, expected = model.ask(prompt, COUNT), case.expected[name]
        differences.append(worst(found, expected.row))
        if found.prompt_tokens != expected.length:
            notes.add(f"{found.prompt_tokens} positions, not {expected.length}")
        if found.ids != expected.ids:
            notes.add("other greedy ids")
    return ", ".join([f"{max(differences):.1e}", *sorted(notes)])


if __name__ == "__main__":
    main()

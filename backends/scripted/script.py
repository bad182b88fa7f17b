"""What a scripted model says: `script.json` in its artifact folder. Structs and their reading only."""

from __future__ import annotations

import pathlib
import re
from typing import Literal

import msgspec

from backends.types import EngineError

SCRIPT_FILE = "script.json"
BOS_ID = 256
EOS_ID = 257
VOCABULARY = 258

Fault = Literal["", "fail", "die", "hang"]


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to prompts in which the regular expression `prompt` is found.

    Each of `pieces` comes in one step, `delay_seconds` after the one before; `prefill_seconds` goes
    by before the first. `fault` strikes when `fault_after` pieces are out: "fail" ends the request
    with an error, "die" ends the process, "hang" never returns from the step.
    """

    prompt: str = ""
    pieces: tuple[str, ...] = ()
    delay_seconds: float = 0.0
    prefill_seconds: float = 0.0
    fault: Fault = ""
    fault_after: int = 0


class Script(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first of `rules` that matches answers. `load_seconds` and `load_fault` are for loading.

    With `vector_size` it gives embeddings too: how often ids of each remainder are there.
    """

    rules: tuple[Rule, ...] = ()
    otherwise: Rule = Rule(pieces=("I have no line for this.",))
    context_length: int = 4096
    load_seconds: float = 0.0
    load_fault: Fault = ""
    vector_size: int = 0

    def rule_for(self, prompt: str) -> Rule:
        for rule in self.rules:
            if re.search(rule.prompt, prompt, re.DOTALL):
                return rule
        return self.otherwise


def read_script(folder: pathlib.Path) -> Script:
    """Raises EngineError("load")."""
    try:
        return msgspec.json.decode((folder / SCRIPT_FILE).read_bytes(), type=Script)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError("load", f"{folder.name}: no readable script ({error})") from error

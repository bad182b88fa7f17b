"""The type of every tensor is the one that llama.cpp's own quantiser gave it."""

from __future__ import annotations

import json
import pathlib

import pytest

from converters.inspector import FILE_TYPES as INSPECTED_FILE_TYPES
from converters.quantise.mixes import FILE_TYPES, choose_types
from tests.converters.headers import header
from tests.converters.quantise.mix_cases import CASES, told

TABLES: dict[str, dict[str, dict[str, str]]] = json.loads(
    pathlib.Path(__file__).with_name("mix_tables.json").read_text()
)


@pytest.mark.parametrize("case", CASES)
def test_types_are_llama_cpps(case: str) -> None:
    source = CASES[case]()
    for file_type, expected in TABLES[case].items():
        chosen = choose_types(source, file_type)
        types = {name: choice.type_name for name, choice in chosen.items()}
        assert told(source, types, file_type) == expected, file_type


def test_the_tables_hold_every_special_rule() -> None:
    everything = json.dumps(TABLES)
    for word in ("Q5_0", "Q5_1", "Q8_0", "F16", "Q6_K Q5_K*", "Q5_K*4 Q4_K"):
        assert word in everything, word
    assert TABLES["llama of 70B"]["Q4_K_M"] != TABLES["llama of 65B"]["Q4_K_M"]
    assert TABLES["mixtral of 16"]["Q4_K_M"] != TABLES["mixtral"]["Q4_K_M"]


def test_a_type_that_does_not_fit_is_told() -> None:
    source = header(shapes={"blk.0.ffn_up.weight": (4, 192), "blk.0.ffn_gate.weight": (4, 256)})
    chosen = choose_types(source, "Q4_K_S")
    assert chosen["blk.0.ffn_up.weight"] == ("Q5_0", "Q4_K")
    assert chosen["blk.0.ffn_gate.weight"] == ("Q4_K", "Q4_K")


def test_file_types_have_the_numbers_that_the_inspector_reads() -> None:
    for name, (number, _) in FILE_TYPES.items():
        assert INSPECTED_FILE_TYPES.get(number, "F32") == name

"""The scripted engine: what a script can ask for. The contract itself is in tests/contract."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from backends.engine.contract import Engine
from backends.scripted import backend
from backends.scripted.make import write_artifact
from backends.scripted.script import EOS_ID, Rule, Script
from backends.types import (
    EngineError,
    Failed,
    Finished,
    GenerateRequest,
    Load,
    Sampled,
)

END = frozenset({EOS_ID})


def load(folder: pathlib.Path, script: Script, **fields) -> Engine:
    write_artifact(folder, script)
    wanted: dict[str, Any] = {"rows": 2} | fields
    return backend.load(Load(request_id="l", backend="scripted", artifact=str(folder), **wanted))


def answer(engine: Engine, prompt: str, **fields) -> tuple[str, Finished | Failed]:
    engine.add(
        GenerateRequest(request_id="a", prompt_ids=tuple(prompt.encode()), end_ids=END, **fields)
    )
    events = []
    while engine.has_work():
        events += engine.step()
    spoken = bytes(event.token_id for event in events if isinstance(event, Sampled))
    assert isinstance(events[-1], Finished | Failed)
    return spoken.decode("utf-8", "replace"), events[-1]


def test_the_first_rule_that_matches_answers(tmp_path: pathlib.Path):
    script = Script(
        rules=(
            Rule(prompt="why.*sky", pieces=("Because", " of Rayleigh – ☀.")),
            Rule(prompt="sky", pieces=("Up.",)),
        ),
        otherwise=Rule(pieces=("Hm?",)),
    )
    engine = load(tmp_path, script)
    text, end = answer(engine, "user: why is\nthe sky blue?")
    assert text == "Because of Rayleigh – ☀."
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("stop", len(text.encode()) + 1)
    assert answer(engine, "where is the sky")[0] == "Up."
    assert answer(engine, "no match")[0] == "Hm?"


def test_a_piece_comes_in_one_step_and_waits_for_its_delay(tmp_path: pathlib.Path):
    rule = Rule(pieces=("ab", "cd"), delay_seconds=0.05, prefill_seconds=0.05)
    engine = load(tmp_path, Script(otherwise=rule))
    engine.add(GenerateRequest(request_id="a", prompt_ids=(65,), end_ids=END))
    begin, groups = time.monotonic(), []
    while engine.has_work():
        ids = [event.token_id for event in engine.step() if isinstance(event, Sampled)]
        groups += [bytes(ids).decode()] if ids else []
    assert groups == ["ab", "cd"]
    assert time.monotonic() - begin >= 0.14


def test_max_tokens_cuts_inside_a_piece(tmp_path: pathlib.Path):
    engine = load(tmp_path, Script(otherwise=Rule(pieces=("abcdef",))))
    text, end = answer(engine, "x", max_tokens=4)
    assert text == "abcd"
    assert isinstance(end, Finished)
    assert end.reason == "length"


def test_a_scripted_failure(tmp_path: pathlib.Path):
    rule = Rule(pieces=("ab", "cd"), fault="fail", fault_after=1)
    text, end = answer(load(tmp_path, Script(otherwise=rule)), "x")
    assert text == "ab"
    assert isinstance(end, Failed)


def test_a_scripted_death_takes_the_process(tmp_path: pathlib.Path):
    write_artifact(tmp_path, Script(otherwise=Rule(pieces=("ab",), fault="die", fault_after=1)))
    code = (
        "from backends.scripted import backend; from backends.types import *\n"
        f"e = backend.load(Load(request_id='l', backend='scripted', artifact={str(tmp_path)!r}))\n"
        "e.add(GenerateRequest(request_id='a', prompt_ids=(65,)))\n"
        "while e.has_work(): print(len(e.step()), flush=True)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout.split() == ["1", "2"]


def test_a_scripted_hang_never_returns(tmp_path: pathlib.Path):
    write_artifact(tmp_path, Script(otherwise=Rule(pieces=("ab",), fault="hang")))
    code = (
        "from backends.scripted import backend; from backends.types import *\n"
        f"e = backend.load(Load(request_id='l', backend='scripted', artifact={str(tmp_path)!r}))\n"
        "e.add(GenerateRequest(request_id='a', prompt_ids=(65,)))\n"
        "while e.has_work(): print(len(e.step()), flush=True)\n"
        "print('over', flush=True)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=1.5, check=False)
    assert (caught.value.stdout or b"").split() == [b"1"]


def test_loading_can_fail(tmp_path: pathlib.Path):
    with pytest.raises(EngineError) as caught:
        load(tmp_path, Script(load_fault="fail"))
    assert caught.value.code == "load"
    with pytest.raises(EngineError):
        backend.load(Load(request_id="l", backend="scripted", artifact=str(tmp_path / "none")))

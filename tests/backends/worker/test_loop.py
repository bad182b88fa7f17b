"""A real worker process on a real socket: streams, cancels, deaths."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import sys
import time

import pytest

from backends import frames
from backends.frames import Hello
from backends.scripted.make import write_artifact
from backends.scripted.script import EOS_ID, Rule, Script
from backends.types import (
    Cancel,
    Chat,
    Counted,
    CountTokens,
    Delta,
    Embed,
    Embedded,
    Failed,
    Limits,
    Load,
    Loaded,
    Probe,
    Progress,
    Rank,
    Render,
    Rendered,
    Status,
)
from tests.backends.worker.worker_client import (
    SCRIPTED,
    WorkerClient,
    scripted_worker,
    text_of,
    tiny_worker,
    user,
    wait_until,
)

SLOW = Rule(prompt="slow", pieces=("x",) * 1000, delay_seconds=0.01)
SKY = Rule(prompt="sky", pieces=("Light ", "scatt", "ers. ", "Blue most."))
EURO = Rule(prompt="euro", pieces=("a € b",))
ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def test_streams_one_answer_and_counts_it(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SKY,))) as worker:
        worker.chat("a", "why is the sky blue")
        messages = worker.read_until_closed("a")["a"]
    assert text_of(messages) == "Light scatters. Blue most."
    assert any(isinstance(message, Progress) for message in messages)
    last = messages[-1]
    assert isinstance(last, Delta)
    assert (last.finish, last.text, last.stop_text) == ("stop", "", "")
    assert last.usage is not None
    assert last.usage.completion_tokens == len("Light scatters. Blue most.") + 1
    assert last.usage.prompt_tokens == 1 + len("user: why is the sky blue\nassistant: ")
    assert len([m for m in messages if isinstance(m, Delta) and m.text]) > 1


def test_two_requests_interleave(tmp_path: pathlib.Path) -> None:
    rules = (
        Rule(prompt="one", pieces=("1",) * 20, delay_seconds=0.01),
        Rule(prompt="two", pieces=("2",) * 20, delay_seconds=0.01),
    )
    with scripted_worker(tmp_path, Script(rules=rules)) as worker:
        worker.chat("a", "one")
        worker.chat("b", "two")
        order: list[str] = []
        texts = {"a": "", "b": ""}
        closed = set()
        while len(closed) < 2:
            message = worker.read()
            if isinstance(message, Delta):
                order.append(message.request_id)
                texts[message.request_id] += message.text
                if message.finish:
                    closed.add(message.request_id)
    assert texts == {"a": "1" * 20, "b": "2" * 20}
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")
    assert order.index("a") < len(order) - 1 - order[::-1].index("b")


def test_stop_string_ends_the_answer_before_it(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SKY,))) as worker:
        worker.chat("a", "sky", stop=("ers. B", "nothing"), logprobs=True, want_context=True)
        messages = worker.read_until_closed("a")["a"]
    assert text_of(messages) == "Light scatt"
    last = messages[-1]
    assert isinstance(last, Delta)
    assert (last.finish, last.stop_text) == ("stop", "ers. B")
    assert last.usage is not None
    assert last.usage.completion_tokens == len("Light scatters. B")
    logprobs = [entry for m in messages if isinstance(m, Delta) for entry in m.logprobs]
    assert [entry.token for entry in logprobs] == list("Light scatt")
    assert bytes(last.context_ids[1:]) == b"user: sky\nassistant: Light scatt"


def test_logprobs_are_one_per_id_even_inside_a_character(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(EURO,))) as worker:
        worker.chat("a", "euro", logprobs=True, top_logprobs=1)
        messages = worker.read_until_closed("a")["a"]
    assert text_of(messages) == "a € b"
    logprobs = [entry for m in messages if isinstance(m, Delta) for entry in m.logprobs]
    assert b"".join(entry.data for entry in logprobs) == "a € b".encode()
    assert len(logprobs) == 7
    assert all(len(entry.top) == 1 for entry in logprobs)


def test_cancel_closes_once_and_frees(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SLOW, SKY)), rows=1) as worker:
        worker.chat("a", "slow")
        worker.read_first(Delta)
        worker.chat("queued", "slow")
        worker.send(Cancel(request_id="queued"))
        worker.send(Cancel(request_id="a"))
        worker.send(Cancel(request_id="a"))
        worker.send(Cancel(request_id="nobody"))
        seen = worker.read_until_closed("a", "queued")
        worker.chat("b", "sky")
        after = worker.read_until_closed("b")["b"]
    for messages in seen.values():
        last = messages[-1]
        assert isinstance(last, Delta)
        assert last.finish == "cancelled"
    assert text_of(after).startswith("Light")


def test_probe_is_answered_while_generating(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SLOW,))) as worker:
        worker.chat("a", "slow")
        worker.read_first(Delta)
        worker.send(Probe(request_id="p"))
        status = worker.read_first(Status)
    assert (status.loaded, status.active, status.waiting) == (True, 1, 0)
    assert status.resident_bytes > 1 << 20
    assert status.steps > 0 and status.moved > 1


def test_probe_is_answered_while_loading(tmp_path: pathlib.Path) -> None:
    write_artifact(tmp_path, Script(load_seconds=1.0))
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        worker.greet()
        worker.send(Load(request_id="load", backend="scripted", artifact=str(tmp_path)))
        worker.send(Probe(request_id="p"))
        worker.chat("early", "sky")
        first, second, third = worker.read(), worker.read(), worker.read()
    assert isinstance(first, Status)
    assert not first.loaded
    assert isinstance(second, Failed)
    assert (second.request_id, second.code) == ("early", "invalid")
    assert isinstance(third, Loaded)


def test_render_count_and_what_is_not_there(tmp_path: pathlib.Path) -> None:
    chat = Chat(request_id="x", messages=user("sky"))
    with scripted_worker(tmp_path, Script(rules=(SKY,))) as worker:
        worker.send(Render(request_id="r", chat=chat))
        rendered = worker.read()
        worker.send(CountTokens(request_id="c", chat=chat))
        counted = worker.read()
        worker.send(Embed(request_id="e", texts=("x",)))
        embedding = worker.read()
        worker.send(Rank(request_id="k", query="x", documents=("y",)))
        ranking = worker.read()
    assert rendered == Rendered(request_id="r", prompt="user: sky\nassistant: ")
    assert counted == Counted(request_id="c", tokens=1 + len("user: sky\nassistant: "))
    for failure in (embedding, ranking):
        assert isinstance(failure, Failed)
        assert failure.code == "unsupported"


def test_too_long_a_prompt_is_refused(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SKY,)), context_length=64) as worker:
        worker.send(Chat(request_id="a", prompt="x" * 63, truncate=False))
        failure = worker.read()
        worker.send(Chat(request_id="b", prompt="x" * 1_000_000, truncate=False))
        worker.read()
        worker.send(Chat(request_id="c", prompt="sky" + "x" * 59, limits=Limits(max_tokens=1)))
        fits = worker.read_until_closed("c")["c"]
    assert isinstance(failure, Failed)
    assert failure.code == "too_long"
    assert failure.message.startswith("the prompt is longer than the context length currently")
    assert isinstance(fits[-1], Delta)
    assert fits[-1].finish == "length"


def test_an_endless_template_fails_its_request_only(tmp_path: pathlib.Path) -> None:
    template = (
        "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"
    )
    script = Script(rules=(SKY, SLOW))
    with scripted_worker(tmp_path, script, template) as worker:
        worker.chat("other", "slow")
        worker.chat("loop", "loop")
        worker.chat("after", "sky")
        failure = worker.read_first(Failed)
        worker.send(Cancel(request_id="other"))
        while True:
            message = worker.read()
            if message.request_id == "after" and isinstance(message, Delta) and message.finish:
                break
    assert (failure.request_id, failure.code) == ("loop", "template")
    assert "line 1" in failure.message
    assert "longer than 2 s" in failure.message


def test_a_template_stuck_in_native_code_costs_the_worker(tmp_path: pathlib.Path) -> None:
    deep_equality = (
        "{% set a = namespace(l=[]) %}{% set b = namespace(l=[]) %}{% for i in range(60) %}"
        "{% set a.l = [a.l, a.l] %}{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}"
    )
    started = time.monotonic()
    with scripted_worker(tmp_path, Script(rules=(SKY,)), deep_equality) as worker:
        worker.chat("a", "sky")
        with pytest.raises(EOFError):
            worker.read()
        assert worker.exit_code() == 1
    assert 3.5 < time.monotonic() - started < 12
    assert "Timeout" in (tmp_path / "log").read_text()


def test_end_of_file_ends_a_generating_worker(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SLOW,))) as worker:
        worker.chat("a", "slow")
        worker.read_first(Delta)
        started = time.monotonic()
        worker.connection.close()
        assert worker.exit_code(5) == 0
    assert time.monotonic() - started < 3


def test_end_of_file_ends_a_worker_whose_engine_hangs(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path, "stuck") as worker:
        worker.load(tmp_path, "tiny")
        worker.chat("a", "x")
        worker.read_first(Delta)
        time.sleep(0.2)
        started = time.monotonic()
        worker.connection.close()
        assert worker.exit_code(8) == 0
    assert 3 < time.monotonic() - started < 6


def test_hangup_ends_a_stopped_main_thread(tmp_path: pathlib.Path) -> None:
    """The peer went away while the main thread was blocked in a send: the watchdog is enough."""
    long = Rule(prompt="long", pieces=("y" * 1000,) * 5000)
    with scripted_worker(tmp_path, Script(rules=(long,), context_length=1 << 24)) as worker:
        worker.send(Chat(request_id="a", prompt="long", limits=Limits(context_length=1 << 24)))
        time.sleep(1)
        worker.connection.close()
        assert worker.exit_code(8) in (0, 75)


def test_sigterm_fails_what_is_open_and_leaves(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path) as worker:
        worker.load(tmp_path, "tiny")
        worker.chat("a", "x")
        worker.read_first(Delta)
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGTERM)
        failure = worker.read_first(Failed)
        assert worker.exit_code(5) == 0
    assert (failure.request_id, failure.code) == ("a", "died")
    assert "the tiny engine is closed" in worker.log.read_text()


def test_kill_is_seen_as_end_of_file(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SLOW,))) as worker:
        worker.chat("a", "slow")
        worker.read_first(Delta)
        worker.process.kill()
        with pytest.raises(EOFError):
            while True:
                worker.read()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent ended")
def test_a_worker_follows_its_parent(tmp_path: pathlib.Path) -> None:
    """The socket stays open in this process, so only the parent's death can end the worker."""
    ours, theirs = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        code = (
            "import subprocess, sys, time; fd = int(sys.argv[1]);"
            "child = subprocess.Popen([sys.executable, '-m', 'backends.worker', '--fd', str(fd)],"
            " pass_fds=[fd]); print(child.pid, flush=True); time.sleep(60)"
        )
        os.set_inheritable(theirs.fileno(), True)
        log = os.open(tmp_path / "pid", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.execv(sys.executable, [sys.executable, "-c", code, str(theirs.fileno())])
    theirs.close()
    with ours:
        ours.settimeout(20)
        assert ours.recv(4)
        worker = int((tmp_path / "pid").read_text())
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        wait_until(
            lambda: (
                not pathlib.Path(f"/proc/{worker}/cmdline").exists()
                or not pathlib.Path(f"/proc/{worker}/cmdline").read_bytes()
            )
        )


def test_a_worker_of_another_build_leaves(tmp_path: pathlib.Path) -> None:
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        worker.send(Hello(protocol=frames.PROTOCOL, build="another"))
        assert worker.exit_code() == 76
    assert "different builds" in worker.log.read_text()


def test_rubbish_on_the_socket_ends_the_worker(tmp_path: pathlib.Path) -> None:
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        worker.greet()
        worker.connection.sendall(b"\xff\xff\xff\xff rubbish")
        assert worker.exit_code() == 76


def test_a_broken_engine_fails_everything_and_leaves(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path, "break") as worker:
        worker.load(tmp_path, "tiny")
        worker.chat("a", "x")
        worker.chat("b", "y")
        seen = worker.read_until_closed("a", "b")
        assert worker.exit_code() == 70
    for messages in seen.values():
        failure = messages[-1]
        assert isinstance(failure, Failed)
        assert (failure.code, failure.message) == ("internal", "ValueError: the tiny engine broke")


def test_a_failing_load_says_why_and_leaves(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path, "unloadable") as worker:
        failure = worker.load(tmp_path, "tiny")
        assert worker.exit_code() == 71
    assert failure == Failed(request_id="load", code="memory", message="the tiny engine needs more")


@pytest.mark.parametrize("broken", ["artifact.json", "tokenizer.json"])
def test_an_unreadable_artifact_says_why_and_leaves(tmp_path: pathlib.Path, broken: str) -> None:
    with tiny_worker(tmp_path) as worker:
        (tmp_path / broken).write_bytes(b"{")
        failure = worker.load(tmp_path, "tiny")
        assert worker.exit_code() == 71
    assert isinstance(failure, Failed)
    assert failure.code == "load"


def test_a_backend_that_is_not_in_the_table_is_refused(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path) as worker:
        failure = worker.load(tmp_path, "os")
        assert worker.exit_code() == 71
    assert isinstance(failure, Failed)
    assert failure.code == "load"


def test_embeddings_are_normalised_and_a_bad_batch_fails_alone(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path) as worker:
        worker.load(tmp_path, "tiny")
        worker.send(Embed(request_id="bad", texts=("bad",)))
        bad = worker.read()
        worker.send(Embed(request_id="good", texts=("abc", "d"), dimensions=2))
        good = worker.read()
    assert bad == Failed(request_id="bad", code="invalid", message="a bad text")
    assert isinstance(good, Embedded)
    assert good.json == (b"[0.6,0.8]", b"[0.6,0.8]")
    assert good.prompt_tokens == 6


def test_end_id_is_not_text(tmp_path: pathlib.Path) -> None:
    with scripted_worker(tmp_path, Script(rules=(SKY,))) as worker:
        worker.chat("a", "sky", want_context=True)
        last = worker.read_until_closed("a")["a"][-1]
    assert isinstance(last, Delta)
    assert EOS_ID not in last.context_ids
    assert bytes(last.context_ids[1:]).endswith(b"Blue most.")

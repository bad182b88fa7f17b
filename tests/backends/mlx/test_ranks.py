"""One model over two processes: the same words as one, and a clear end when one of them dies."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import mlx.core as mx
import psutil
import pytest

from backends.mlx import orders, splitting
from backends.mlx.mlx_lm_internals import build_model
from backends.mlx.ranks import Ranks
from backends.types import Chat, EngineError, Failed, Limits, Load, Loaded, Sampling
from tests.backends.mlx.lead_process import everything
from tests.backends.mlx.tiny_mlx import LLAMA, WINDOWS, write_tiny_mlx
from tests.backends.worker.worker_client import SCRIPTED, WorkerClient, is_closing
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

QWEN = LLAMA | {"model_type": "qwen2", "num_hidden_layers": 3}
PATIENCE_SECONDS = 150


def from_two_ranks(folder: pathlib.Path, split: str, batches: str = "alone") -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.backends.mlx.lead_process"]
    done = subprocess.run(
        [*command, str(folder), "2", split, batches],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("config", "split", "batches"),
    [(LLAMA, "tensor", "alone"), (LLAMA, "tensor", "batches"), (QWEN, "pipeline", "alone")],
)
def test_two_ranks_say_what_one_process_says(
    tmp_path: pathlib.Path, config: dict[str, Any], split: str, batches: str
):
    write_tiny_mlx(tmp_path / "m", config)
    alone = everything(tmp_path / "m", has_batches=batches == "batches")
    assert from_two_ranks(tmp_path / "m", split, batches) == alone


def test_a_dead_rank_is_one_error_and_leaves_no_process(tmp_path: pathlib.Path):
    folder = converted_file(make_gguf(tmp_path / "m.gguf", types="Q8_0"), target="mlx")
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        worker.connection.settimeout(PATIENCE_SECONDS)
        worker.greet()
        load = Load(
            request_id="load", backend="mlx", artifact=str(folder), ranks=2, context_length=512
        )
        worker.send(load)
        assert isinstance(worker.read(), Loaded)
        (rank,) = psutil.Process(worker.process.pid).children()
        chat = Chat(
            request_id="r", prompt="go on", sampling=Sampling(temperature=1.0, seed=1),
            limits=Limits(max_tokens=-1, context_length=512),
        )  # fmt: skip
        worker.send(chat)
        worker.read()
        os.kill(rank.pid, signal.SIGKILL)
        killed = time.monotonic()
        closing = worker.read()
        while not is_closing(closing):
            closing = worker.read()
        assert isinstance(closing, Failed) and closing.code == "died"
        assert "rank 1 of 2 of this model ended" in closing.message
        assert time.monotonic() - killed < PATIENCE_SECONDS
        worker.process.wait(PATIENCE_SECONDS)
    assert not rank.is_running()


def test_ranks_leave_with_the_process_that_started_them(tmp_path: pathlib.Path):
    write_tiny_mlx(tmp_path / "m")
    code = (
        "import sys; from tests.backends.mlx.engine_rig import load_tiny;"
        f"load_tiny(__import__('pathlib').Path({str(tmp_path / 'm')!r}), ranks=2);"
        "print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lead:
        assert lead.stdout is not None
        assert lead.stdout.readline() == b"up\n"
        (rank,) = psutil.Process(lead.pid).children()
        lead.kill()
        lead.wait()
    rank.wait(PATIENCE_SECONDS)


# ---- what is decided before anything starts ----


def built(config: dict[str, Any], tmp_path: pathlib.Path) -> Any:
    write_tiny_mlx(tmp_path / "m", config)
    return build_model(config, dict(mx.load(str(tmp_path / "m" / "model.safetensors"))))  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_the_split_follows_the_model(tmp_path: pathlib.Path):
    llama, qwen = built(LLAMA, tmp_path / "a"), built(QWEN, tmp_path / "b")
    assert splitting.plan_split("auto", llama, LLAMA, 2) == "tensor"
    assert splitting.plan_split("auto", qwen, QWEN, 2) == "tensor"
    assert splitting.plan_split("auto", qwen, QWEN, 3) == "pipeline"
    for model, config, wanted, words in (
        (llama, LLAMA, "pipeline", "llama has no way to do it"),
        (llama, LLAMA, "tensor", "4 heads over 2 for keys do not divide by 3"),
        (qwen, QWEN, "pipeline", "it has 3 blocks"),
        (built(WINDOWS, tmp_path / "c"), WINDOWS, "auto", "tensor: .*; pipeline: "),
    ):
        with pytest.raises(EngineError, match=words) as caught:
            splitting.plan_split(wanted, model, config, 4 if "blocks" in words else 3)
        assert caught.value.code == "unsupported"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("8.8.8.8:7000", "only be on a private network"),
        ("0.0.0.0:7000", "only be on a private network"),
        ("[2001:4860:4860::8888]:7000", "only be on a private network"),
        ("192.168.1.7:7000", "not started by this version"),
        ("example.org:7000", "no IP:PORT"),
    ],
)
def test_ranks_stay_at_home(address: str, words: str):
    splitting.check_hosts(["127.0.0.1:7000", "[::1]:7000"])
    with pytest.raises(EngineError, match=words):
        splitting.check_hosts(["127.0.0.1:7000", address])


def test_orders_survive_the_wire(monkeypatch: pytest.MonkeyPatch):
    """What the first rank sums up is what the others get; long orders take a second exchange."""
    sent: list[Any] = []
    monkeypatch.setattr(orders, "_summed", lambda _group, words: sent.append(words.copy()))
    told: list[orders.Order] = [
        orders.Make(1),
        orders.Batch(3, [1, 2]),
        orders.Run(3, [list(range(5000)), [1] * 5000]),
        orders.Drop([1]),
        orders.Leave(),
    ]
    group: Any = None
    orders.tell(group, told)
    orders.tell(group, [orders.Trim(1, 5)])
    assert len(sent) == 3
    monkeypatch.setattr(orders, "_summed", lambda _group, _words: sent.pop(0))
    assert orders.hear(group) == told
    assert orders.hear(group) == [orders.Trim(1, 5)]


@pytest.mark.parametrize("size", [0, -5, orders.MAX_ORDER_BYTES + 1])
def test_orders_without_bounds_are_refused(monkeypatch: pytest.MonkeyPatch, size: int):
    frame = orders.np.zeros(orders.FRAME_WORDS, orders.np.int32)
    frame[0] = size
    monkeypatch.setattr(orders, "_summed", lambda _group, _words: frame)
    with pytest.raises(ValueError):
        orders.hear(None)  # pyright: ignore[reportArgumentType]


def test_no_progress_is_a_loss():
    """As a rank looks that lives and says nothing."""
    ranks = object.__new__(Ranks)
    ranks.processes, ranks._stall_seconds, ranks._busy_since = [], 0.01, 0.0
    assert ranks._loss() == ""
    with ranks.moving():
        time.sleep(0.02)
        assert "no progress for 0.01 s" in ranks._loss()
    assert ranks._loss() == ""

"""`make soak ARGS="--minutes 10 --clients 16 --backend mlx"`: many clients, mixed prompts, as long as asked.

Fails when an answer is lost, doubled or broken, when a seeded answer changes, or when the memory or
the file descriptors of daemon or worker keep growing after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
import tempfile
import threading
import time

import httpx
import psutil

from tests.e2e.daemon_process import DaemonProcess

QUESTIONS = (
    "Why is the sky blue?",
    "List three colours.",
    "How do rainbows form?",
    "Who are you?",
    "Give me a JSON object with a name and an age.",
    # Some 1,500 ids: prefilled in chunks while the others decode.
    "Name one word of this. " + "A small fire in the hearth keeps the whole house warm. " * 120,
)
GROWTH_BYTES = 48 << 20
GROWTH_FILES = 16


class Tally:
    """What all clients saw. Counters only; shared between threads under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.seeded: dict[tuple[str, int], str] = {}
        self.problems: list[str] = []

    def add(self, word: str) -> None:
        with self._lock:
            self.counts[word] += 1

    def check(self, key: tuple[str, int], text: str) -> None:
        with self._lock:
            if self.seeded.setdefault(key, text) != text:
                self.problems.append(f"{key}: another answer than before")

    def blame(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)


def ask(url: str, draw: random.Random, tally: Tally) -> None:
    """One request of a random kind; some are left in the middle on purpose."""
    question, seed = draw.choice(QUESTIONS), draw.randrange(4)
    leaves = draw.random() < 0.2
    body = {
        "model": "ember",
        "messages": [{"role": "user", "content": question}],
        "options": {"seed": seed, "temperature": 0.9, "num_predict": draw.choice((8, 48))},
    }
    key = (f"{question} {body['options']['num_predict']}", seed)
    with httpx.stream("POST", f"{url}/api/chat", json=body, timeout=120, trust_env=False) as answer:
        if answer.status_code != 200:
            tally.blame(f"status {answer.status_code}: {answer.read()[:200]!r}")
            return
        text, done = "", 0
        for line in answer.iter_lines():
            event = json.loads(line)
            if "error" in event:
                tally.blame(str(event["error"]))
                return
            text += event["message"]["content"]
            done += bool(event["done"])
            if leaves and text:
                tally.add("left")
                return
    if done != 1:
        tally.blame(f"{done} endings")
    tally.check(key, text)
    tally.add("answered")


def client(url: str, number: int, until: float, tally: Tally) -> None:
    draw = random.Random(number)
    while time.monotonic() < until:
        try:
            ask(url, draw, tally)
        except Exception as error:  # noqa: BLE001  # every failure is what this run looks for
            tally.blame(f"{type(error).__name__}: {error}")


def measure(daemon: DaemonProcess) -> tuple[int, int]:
    """Resident bytes and open files of the daemon and its children."""
    assert daemon.process is not None
    everyone = [psutil.Process(daemon.process.pid), *daemon.children()]
    return sum(p.memory_info().rss for p in everyone), sum(p.num_fds() for p in everyone)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--backend", default="auto", help="what HEARTH_BACKEND is set to")
    arguments = parser.parse_args()
    tally = Tally()
    with (
        tempfile.TemporaryDirectory() as folder,
        DaemonProcess(pathlib.Path(folder) / "home", HEARTH_BACKEND=arguments.backend) as daemon,
    ):
        seconds = arguments.minutes * 60
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=client, args=(daemon.url, n, until, tally))
            for n in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 5)
        early = measure(daemon)
        for thread in threads:
            thread.join()
        late = measure(daemon)
    print(f"{dict(tally.counts)}; {len(tally.seeded)} different seeded answers")
    print(f"resident {early[0] >> 20} -> {late[0] >> 20} MiB, open files {early[1]} -> {late[1]}")
    if late[0] - early[0] > GROWTH_BYTES or late[1] - early[1] > GROWTH_FILES:
        tally.blame("memory or open files grew")
    for problem in collections.Counter(tally.problems).most_common(20):
        print(problem)
    raise SystemExit(bool(tally.problems))


if __name__ == "__main__":
    main()

# pyright: reportMissingImports=false
"""Train the bundled model and write it as a GGUF: under an hour on two CPU cores.

PyTorch is wanted only here, in an environment of its own:

    python -m venv ember-env
    ember-env/bin/pip install torch==2.13.0 numpy gguf tokenizers
    ember-env/bin/python -m tests.models.train_ember --output daemon/bundled/ember.gguf

Run from the repository's root. Batches depend only on the seed; rounding depends on versions
and thread count. A checkpoint is kept beside the output while training, so an interrupted run goes
on where it was.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from tests.models.ember_corpus import draw_conversations
from tests.models.ember_file import EmberShape, write_gguf
from tests.models.ember_model import Ember
from tests.models.ember_optimizer import Muon
from tests.models.ember_text import EmberText, build_text

IGNORED = -100
PROMPT_WEIGHT = 0.1
BATCH_IDS = 3072


@dataclass(frozen=True)
class Schedule:
    """Warm-up and a cosine down to a twentieth of the peak."""

    steps: int
    peak: float = 2.5e-3
    warmup: int = 50

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True)
class Batch:
    """ids i64 [rows, length] padded on the right; weights f32 of each next id's loss, 0 = ignored."""

    ids: Tensor
    weights: Tensor


def batches(text: EmberText, seed: int) -> Iterator[Batch]:
    """Endless batches of about `BATCH_IDS` ids; conversations of one length go together."""
    epoch = 0
    while True:
        random = Random(f"{seed}-{epoch}")
        encoded = [text.encode(item) for item in draw_conversations(random)]
        encoded.sort(key=lambda item: len(item[0]) + random.random() * 8)
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in encoded:
            if (len(groups[-1]) + 1) * len(item[0]) > BATCH_IDS:
                groups.append([])
            groups[-1].append(item)
        random.shuffle(groups)
        yield from map(padded, groups)
        epoch += 1


def padded(group: list[tuple[list[int], list[bool]]]) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for row, (row_ids, is_answer) in enumerate(group):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        answer = torch.tensor(is_answer, dtype=torch.float32)
        weights[row, : len(row_ids)] = PROMPT_WEIGHT + (1 - PROMPT_WEIGHT) * answer
    return Batch(ids, weights)


def loss_of(model: Ember, batch: Batch) -> tuple[Tensor, float]:
    """The weighted mean loss, and the plain mean over answer ids for the log."""
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    hidden = model(batch.ids[:, :-1])
    wanted = weights > 0
    each = functional.cross_entropy(model.logits(hidden[wanted]), targets[wanted], reduction="none")
    chosen = weights[wanted]
    answers = each[chosen == 1].mean().item()
    return (each * chosen).sum() / chosen.sum(), answers


def make_optimizers(model: Ember) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.blk.parameters() if weight.dim() == 2]
    others = [model.token_embd.weight, *(w for w in model.parameters() if w.dim() < 2)]
    return [Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0)]


def train(text: EmberText, schedule: Schedule, seed: int, checkpoint: Path) -> Ember:
    """Train for `schedule.steps`, resuming from the checkpoint where there is one."""
    torch.manual_seed(seed)
    model = Ember(EmberShape(vocabulary=len(text.vocabulary.tokens)))
    optimizers, stream = make_optimizers(model), batches(text, seed)
    done = restore(checkpoint, model, optimizers) if checkpoint.exists() else 0
    for _ in range(done):
        next(stream)
    started, recent = time.monotonic(), 0.0
    for step in range(done, schedule.steps):
        answers = train_step(model, optimizers, next(stream), schedule.rate(step))
        recent = answers if step == done else 0.95 * recent + 0.05 * answers
        if (step + 1) % 50 == 0 or step + 1 == schedule.steps:
            print(f"{step + 1} {time.monotonic() - started:.0f}s loss {recent:.4f}", flush=True)
            save(checkpoint, model, optimizers, step + 1)
    return model


def train_step(
    model: Ember, optimizers: list[torch.optim.Optimizer], batch: Batch, rate: float
) -> float:
    """One update; returns the mean loss of the answers."""
    loss, answers = loss_of(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return answers


def save(
    checkpoint: Path, model: Ember, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    partial = checkpoint.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, partial)
    partial.replace(checkpoint)


def restore(checkpoint: Path, model: Ember, optimizers: list[torch.optim.Optimizer]) -> int:
    """The number of steps done."""
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-checkpoint", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    checkpoint = options.output.with_suffix(".checkpoint")
    text = build_text(options.seed)
    model = train(text, Schedule(options.steps), options.seed, checkpoint)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    write_gguf(options.output, model.shape, weights, text)
    if not options.keep_checkpoint:
        checkpoint.unlink()
    print(json.dumps({"bytes": options.output.stat().st_size, **asdict(model.shape)}))


if __name__ == "__main__":
    main()

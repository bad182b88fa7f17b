# pyright: reportMissingImports=false
"""The network of the bundled model in PyTorch, exactly as llama.cpp computes the llama architecture.

Rotary pairs are neighbours (2i, 2i+1), so the trained q and k rows go into a GGUF as they are. Only
the training script imports this; PyTorch is not a dependency of the project.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.ember_file import EmberShape


class Block(nn.Module):
    """Pre-normed attention with grouped keys and a gated feed-forward; names as in GGUF."""

    def __init__(self, shape: EmberShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.attn_norm = nn.RMSNorm(shape.embedding, eps=shape.epsilon)
        self.attn_q = nn.Linear(shape.embedding, queries, bias=False)
        self.attn_k = nn.Linear(shape.embedding, keys, bias=False)
        self.attn_v = nn.Linear(shape.embedding, keys, bias=False)
        self.attn_output = nn.Linear(queries, shape.embedding, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.embedding, eps=shape.epsilon)
        self.ffn_gate = nn.Linear(shape.embedding, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.embedding, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.embedding, bias=False)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """[batch, ids, embedding] in and out."""
        hidden = hidden + self._attention(self.attn_norm(hidden), cosines, sines)
        normed = self.ffn_norm(hidden)
        return hidden + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))

    def _attention(self, normed: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        batch, ids, _ = normed.shape
        query, key, value = (
            projection(normed).view(batch, ids, -1, self.shape.head_size).transpose(1, 2)
            for projection in (self.attn_q, self.attn_k, self.attn_v)
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(query, cosines, sines),
            rotate(key, cosines, sines),
            value,
            is_causal=True,
            enable_gqa=True,
        )
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, ids, -1))


class Ember(nn.Module):
    """The whole model; the head is the embedding again."""

    def __init__(self, shape: EmberShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.embedding)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.output_norm = nn.RMSNorm(shape.embedding, eps=shape.epsilon)
        self._draw()

    def _draw(self) -> None:
        """Small normal weights; projections into the residual shrink with depth."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            is_residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
            scale = (2 * self.shape.blocks) ** -0.5 if is_residual else 1.0
            std = 0.02 if name.startswith("token_embd") else scale * weight.shape[1] ** -0.5
            nn.init.normal_(weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, ids] to the last hidden states, normed: [batch, ids, embedding]."""
        cosines, sines = rotation_tables(ids.shape[1], self.shape)
        hidden = self.token_embd(ids)
        for block in self.blk:
            hidden = block(hidden, cosines, sines)
        return self.output_norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.token_embd.weight)


def rotation_tables(length: int, shape: EmberShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [length, head_size / 2]."""
    exponents = torch.arange(0, shape.head_size, 2).float() / shape.head_size
    angles = torch.outer(torch.arange(length).float(), shape.rope_base**-exponents)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate neighbouring pairs of [batch, heads, ids, head_size] by position."""
    even, odd = vectors[..., 0::2], vectors[..., 1::2]
    turned = torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1)
    return turned.flatten(-2)

"""`gemma3n` → mlx-lm's `gemma3n`, in bfloat16 as Google's own files are.

Its text model stands within one of images and sound, which it does not have. It takes the deviation of
gates as a population's where the file means a sample's; a share of cut-off gates that is a little
higher makes up for it exactly. It clips coefficients where the config has a bound: files mean none.
"""

from __future__ import annotations

import math

from converters.architectures.model import ModelShape
from converters.architectures.parts import FeedForward
from converters.artifact import RopeTable
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.names import Names

_ROOT = "model.language_model"
_NEEDS = frozenset(
    {
        "several streams",
        "embedding scale",
        "tied output",
        "gelu_tanh",
        "norms after attention",
        "norms after the feed-forward",
        "norms of q and k",
        "norms of values",
        "second rotation",
        "sliding window",
        "logit soft cap",
    }
)


def _config(model: ModelShape) -> Config:
    altup, blocks = model.altup, model.blocks
    assert altup is not None
    _check(model)
    attentions = [attention_of(block) for block in blocks]
    ranks = {block.altup.left.rows for block in blocks if block.altup}
    if len(ranks) > 1:
        raise Unsupported(f"mlx-lm's gemma3n model has one rank, not {sorted(ranks)}")
    return {
        "num_kv_shared_layers": sum(each.reading is not None for each in attentions),
        "vocab_size_per_layer_input": model.vocabulary,
        "sliding_window": max(each.window for each in attentions),
        "rope_local_base_freq": model.rope["local"].base,
        "final_logit_softcapping": model.logit_softcap,
        "layer_types": [
            "sliding_attention" if each.window else "full_attention" for each in attentions
        ],
        "activation_sparsity_pattern": [_share(block.feed_forward) for block in blocks],
        "intermediate_size": [network.down.columns for network in model.networks()],
        "hidden_size_per_layer_input": altup.inputs,
        "altup_num_inputs": altup.streams,
        "altup_coef_clip": None,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": ranks.pop(),
    }


def _check(model: ModelShape) -> None:
    """What the module takes for granted."""
    if not math.isclose(model.embedding_scale, math.sqrt(model.embedding_length), rel_tol=1e-6):
        raise Unsupported(f"mlx-lm's gemma3n model scales embeddings by √{model.embedding_length}")
    attentions = [attention_of(block) for block in model.blocks]
    owners = [each for each in attentions if each.reading is None]
    if len({bool(each.window) for each in owners}) < 2:
        raise Unsupported("mlx-lm's gemma3n model has blocks with and without a window")
    if any((each.rope == "local") != bool(each.window) for each in attentions):
        raise Unsupported("mlx-lm's gemma3n model rotates windows by a table of their own")
    if any(each.scale != 1 for each in attentions):
        raise Unsupported("mlx-lm's gemma3n model does not scale scores")


def _share(network: object) -> float:
    """Of gates that are cut off; 0 for none: where a normal distribution is as far from its mean."""
    if not isinstance(network, FeedForward) or network.cutoff is None:
        return 0.0
    width = network.down.columns
    distance = network.cutoff * math.sqrt(width / (width - 1))
    share = (1 + math.erf(distance / math.sqrt(2))) / 2
    if not 0 < share < 1:
        raise Unsupported(f"mlx-lm's gemma3n model cannot cut gates off at {network.cutoff}")
    return share


def _within(config: Config, model: ModelShape, tables: dict[str, RopeTable]) -> Config:
    text = config | {"rope_theta": model.rope["global"].base}
    return {"model_type": config["model_type"], "text_config": text}


FAMILY = Family(
    model_type="gemma3n",
    number="BF16",
    config=_config,
    rope=_within,
    names=Names(
        embedding=f"{_ROOT}.embed_tokens",
        output_norm=f"{_ROOT}.norm",
        block=f"{_ROOT}.layers.{{}}",
        post_attention_norm="post_attention_layernorm",
        feed_forward_norm="pre_feedforward_layernorm",
        post_feed_forward_norm="post_feedforward_layernorm",
    ),
    carries=_NEEDS
    | {
        "attention scale",
        "blocks of several widths",
        "cut-off gates",
        "free head size",
        "keys of another block",
    },
    needs=_NEEDS,
)

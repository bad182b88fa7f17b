"""Which module of an mlx-lm model plays which role; the defaults are llama's, which most share."""

from __future__ import annotations

import msgspec


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Paths without `.weight`; those of a block are relative to it. Empty: there is no such module.

    Those of an expert's matrices are relative to it: `shared_gate_up` is a matrix [gate; up] where the
    module has no two.
    """

    embedding: str = "model.embed_tokens"
    output_norm: str = "model.norm"
    output: str = "lm_head"
    block: str = "model.layers.{}"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    fused: str = "self_attn.qkv_proj"
    attention_output: str = "self_attn.o_proj"
    attention_gate: str = "self_attn.gate_proj"
    sinks: str = "self_attn.sinks"
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    query_down: str = "self_attn.q_a_proj"
    query_down_norm: str = "self_attn.q_a_layernorm"
    query_up: str = "self_attn.q_b_proj"
    key_value_down: str = "self_attn.kv_a_proj_with_mqa"
    key_value_norm: str = "self_attn.kv_a_layernorm"
    key_value_up: str = "self_attn.kv_b_proj"
    key_up: str = "self_attn.embed_q"
    value_up: str = "self_attn.unembed_out"
    convolution: str = "conv"
    delta_net: str = "linear_attn"
    mamba: str = "mamba"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    fused_up: str = "mlp.gate_up_proj"
    down: str = "mlp.down_proj"
    xielu: str = "mlp.act_fn"
    router: str = "mlp.gate"
    experts: str = "mlp.switch_mlp"
    experts_up: str = "up_proj"
    experts_down: str = "down_proj"
    latent_down: str = ""
    latent_up: str = ""
    shared: str = "mlp.shared_expert"
    shared_gate_up: str = ""
    shared_down: str = "down_proj"
    shared_gate: str = "mlp.shared_expert_gate"
    attention_norm: str = "input_layernorm"
    post_attention_norm: str = ""
    feed_forward_norm: str = "post_attention_layernorm"
    post_feed_forward_norm: str = ""
    after_attention_norm: str = ""
    second_after_norm: str = ""
    after_feed_forward_norm: str = ""

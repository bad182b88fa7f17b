"""The families of `hugging_face`: configurations, tokenizers, and which weights they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.models.hugging_face_tokenizers import (
    VOCABULARY,
    byte_level_file,
    scored_file,
    unigram_file,
    word_piece_file,
)
from tests.models.hugging_face_weights import (
    Json,
    Weight,
    bert,
    gemma,
    mixture,
    nomic,
    phi3,
    plain,
    qwen3_mixture,
)
from tests.models.vocabularies import CHATML, LLAMA3_CHAT

BLOCKS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD = 2, 256, 4, 2, 512


@dataclass(frozen=True)
class Family:
    """`config` beyond the sizes; `weights` by the original names; the tokenizer and what it says."""

    name: str
    config: Json
    weights: Callable[[Json], Iterator[Weight]]
    tokenizer: Callable[[], Json]
    tokenizer_config: Json = field(default_factory=dict[str, Any])
    more_files: dict[str, Json | list[Any]] = field(default_factory=dict[str, Any])


def sizes(model_type: str, class_name: str, **more: Any) -> Json:
    return {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | more


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = [1.0 + 0.5 * index for index in range(32)]
SHORT = [1.0 + 0.1 * index for index in range(32)]
ENCODER = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
}
SENTENCES: dict[str, Json | list[Any]] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 256,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
    },
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
}
LLAMA3_WORDS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "chat_template": LLAMA3_CHAT,
}
QWEN_WORDS = {
    "bos_token": None,
    "eos_token": {"content": "<|im_end|>"},
    "add_bos_token": False,
    "pad_token": "<|endoftext|>",
    "chat_template": CHATML,
}
LLAMA2_WORDS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "chat_template": "{{ bos_token }}" + CHATML,
}
BERT_WORDS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
ROBERTA_WORDS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def llama3_file() -> Json:
    return byte_level_file("llama-bpe")


def qwen_file() -> Json:
    return byte_level_file("qwen2")


def _gemma3_weights(config: Json) -> Iterator[Weight]:
    return gemma(config, has_head_norms=True)


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", sizes("llama", "LlamaForCausalLM"), plain, scored_file, LLAMA2_WORDS),
    "llama3": Family(
        "llama",
        sizes(
            "llama",
            "LlamaForCausalLM",
            rope_theta=500000.0,
            rope_scaling=LLAMA3_SCALING,
            tie_word_embeddings=True,
        ),
        plain,
        llama3_file,
        LLAMA3_WORDS,
        {"generation_config.json": {"eos_token_id": [688, 689]}},
    ),
    "mistral": Family(
        "llama",
        sizes("mistral", "MistralForCausalLM", head_dim=32, sliding_window=None),
        plain,
        scored_file,
        LLAMA2_WORDS,
    ),
    "mixtral": Family(
        "llama",
        sizes("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
        mixture,
        scored_file,
        LLAMA2_WORDS,
    ),
    "qwen2": Family(
        "qwen2",
        sizes(
            "qwen2",
            "Qwen2ForCausalLM",
            rope_theta=1000000.0,
            use_sliding_window=False,
            sliding_window=131072,
        ),
        lambda config: plain(config, has_bias=True),
        qwen_file,
        QWEN_WORDS,
        {"generation_config.json": {"eos_token_id": [699, 688]}},
    ),
    "qwen2-yarn": Family(
        "qwen2",
        sizes("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True, rope_scaling=YARN),
        lambda config: plain(config, has_bias=True),
        qwen_file,
        QWEN_WORDS,
    ),
    "qwen3": Family(
        "qwen3",
        sizes(
            "qwen3",
            "Qwen3ForCausalLM",
            head_dim=96,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            attention_bias=False,
            rope_scaling=None,
        ),
        lambda config: plain(config, has_head_norms=True),
        qwen_file,
        QWEN_WORDS,
    ),
    "qwen3moe": Family(
        "qwen3moe",
        sizes(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            head_dim=64,
            num_experts=4,
            norm_topk_prob=True,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
        qwen3_mixture,
        qwen_file,
        QWEN_WORDS,
    ),
    "gemma": Family(
        "gemma",
        sizes(
            "gemma",
            "GemmaForCausalLM",
            head_dim=64,
            tie_word_embeddings=True,
            hidden_act="gelu_pytorch_tanh",
            rms_norm_eps=1e-6,
        ),
        lambda config: gemma(config, is_sandwich=False),
        scored_file,
        LLAMA2_WORDS,
    ),
    "gemma2": Family(
        "gemma2",
        sizes(
            "gemma2",
            "Gemma2ForCausalLM",
            head_dim=64,
            tie_word_embeddings=True,
            hidden_activation="gelu_pytorch_tanh",
            attn_logit_softcapping=5.0,
            final_logit_softcapping=6.0,
            query_pre_attn_scalar=64,
            sliding_window=4096,
            rms_norm_eps=1e-6,
        ),
        gemma,
        scored_file,
        LLAMA2_WORDS,
    ),
    "gemma3": Family(
        "gemma3",
        sizes(
            "gemma3_text",
            "Gemma3ForCausalLM",
            head_dim=64,
            tie_word_embeddings=True,
            hidden_activation="gelu_pytorch_tanh",
            query_pre_attn_scalar=64,
            sliding_window=16,
            sliding_window_pattern=2,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            rms_norm_eps=1e-6,
        ),
        _gemma3_weights,
        scored_file,
        LLAMA2_WORDS,
    ),
    "phi3": Family(
        "phi3",
        sizes("phi3", "Phi3ForCausalLM", sliding_window=2047),
        phi3,
        scored_file,
        LLAMA2_WORDS,
    ),
    "phi3-long": Family(
        "phi3",
        sizes(
            "phi3",
            "Phi3ForCausalLM",
            original_max_position_embeddings=64,
            rope_scaling={
                "type": "longrope",
                "long_factor": LONG,
                "short_factor": SHORT,
                "original_max_position_embeddings": 64,
            },
        ),
        phi3,
        scored_file,
        LLAMA2_WORDS,
    ),
    "granite": Family(
        "granite",
        sizes(
            "granite",
            "GraniteForCausalLM",
            attention_multiplier=0.08,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            logits_scaling=1.2,
            attention_bias=False,
            mlp_bias=False,
        ),
        plain,
        scored_file,
        LLAMA2_WORDS,
    ),
    "bert": Family(
        "bert",
        {"model_type": "bert", "architectures": ["BertModel"]} | ENCODER,
        bert,
        word_piece_file,
        BERT_WORDS,
    ),
    "bert-sentences": Family(
        "bert",
        {"model_type": "bert", "architectures": ["BertModel"]} | ENCODER,
        bert,
        word_piece_file,
        BERT_WORDS,
        SENTENCES,
    ),
    "xlm-roberta": Family(
        "bert",
        {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
        | ENCODER
        | {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1},
        lambda config: bert(config, prefix="roberta."),
        unigram_file,
        ROBERTA_WORDS,
    ),
    "nomic-bert": Family(
        "nomic-bert",
        {
            "model_type": "nomic_bert",
            "architectures": ["NomicBertModel"],
            "n_embd": 256,
            "n_inner": 512,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "vocab_size": VOCABULARY,
            "type_vocab_size": 2,
            "rotary_emb_base": 1000.0,
            "rotary_emb_fraction": 1.0,
            "activation_function": "swiglu",
            "layer_norm_epsilon": 1e-12,
            "prenorm": False,
            "auto_map": {"AutoModel": "somebody/code--modeling.NomicBertModel"},
        },
        nomic,
        word_piece_file,
        BERT_WORDS,
    ),
}

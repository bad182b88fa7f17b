"""Which families there are, by what `architectures` in `config.json` says; listed here alone."""

from __future__ import annotations

from collections.abc import Callable

from converters.errors import MalformedFile, Unsupported
from converters.imports.config import Config
from converters.imports.families import bert, gemma, granite, llama, phi3, qwen
from converters.imports.families.bert import Pooling
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Recipe

DECODERS: dict[str, Callable[[Config, Tensors], Recipe]] = {
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "Gemma3ForConditionalGeneration": gemma.gemma3,
    "GemmaForCausalLM": gemma.gemma,
    "GraniteForCausalLM": granite.granite,
    "LlamaForCausalLM": llama.llama,
    "MistralForCausalLM": llama.llama,
    "MixtralForCausalLM": llama.mixtral,
    "Phi3ForCausalLM": phi3.phi3,
    "Qwen2ForCausalLM": qwen.qwen2,
    "Qwen3ForCausalLM": qwen.qwen3,
    "Qwen3MoeForCausalLM": qwen.qwen3_mixture,
}
ENCODERS: dict[str, Callable[[Config, Tensors, Pooling], Recipe]] = {
    "BertForMaskedLM": bert.bert,
    "BertForSequenceClassification": bert.bert,
    "BertModel": bert.bert,
    "NomicBertModel": bert.nomic,
    "RobertaForMaskedLM": bert.roberta,
    "RobertaForSequenceClassification": bert.roberta,
    "RobertaModel": bert.roberta,
    "XLMRobertaForMaskedLM": bert.roberta,
    "XLMRobertaForSequenceClassification": bert.roberta,
    "XLMRobertaModel": bert.roberta,
}
# For files that name no class.
_BY_MODEL_TYPE = {
    "bert": "BertModel", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration", "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM", "nomic_bert": "NomicBertModel", "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel",
}  # fmt: skip


def model_class(config: Config) -> str:
    """Raises MalformedFile where the file does not say, Unsupported in the field's own words."""
    named = config.texts("architectures")
    found = named[0] if named else _BY_MODEL_TYPE.get(config.text("model_type"), "")
    if not found:
        raise MalformedFile("config.json names no architecture")
    if found not in DECODERS and found not in ENCODERS:
        raise Unsupported(f'unsupported architecture "{found[:120]}"')
    return found


def recipe_for(config: Config, tensors: Tensors, pooling: Pooling) -> Recipe:
    found = model_class(config)
    if found in DECODERS:
        return DECODERS[found](config, tensors)
    return ENCODERS[found](config, tensors, pooling)

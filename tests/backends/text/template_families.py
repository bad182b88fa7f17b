"""Prompt formats of published model families, and templates written for them in each dialect.

`expected` is what the family's own card says a conversation looks like; it is not made by any of
the templates. The conversation is always SYSTEM, FIRST, ANSWER, SECOND.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM, FIRST, ANSWER, SECOND = "Be kind.", "Hi", "Hello!", "Why?"


@dataclass(frozen=True)
class Family:
    """`messages` and `legacy` are Go templates of the two forms, `jinja` the weights' own."""

    name: str
    expected: str
    legacy: str = ""
    messages: str = ""
    jinja: str = ""

    def variants(self) -> list[tuple[str, str]]:
        forms = {"legacy": self.legacy, "messages": self.messages, "jinja": self.jinja}
        return [(form, source) for form, source in forms.items() if source]


FAMILIES = (
    Family(
        "chatml",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
        legacy="{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
        messages="{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
        "{{ end }}<|im_start|>assistant\n",
        jinja="{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    Family(
        "llama3-instruct",
        "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        legacy="{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n"
        "{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}"
        "<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>",
        messages="{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
        "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
        jinja="{% for message in messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    Family(
        "llama2-chat",
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Why? [/INST]",
        legacy="[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}"
        "{{ .Prompt }} [/INST]{{ if .Response }} {{ end }}{{ .Response }} </s><s>",
        messages="{{- range $i, $m := .Messages }}{{ if eq .Role `user` }}[INST] "
        "{{ if and (le $i 1) $.System }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}"
        "{{ .Content }} [/INST]{{ else if eq .Role `assistant` }} {{ .Content }} </s><s>"
        "{{ end }}{{ end }}",
    ),
    Family(
        "mistral-instruct",
        "[INST] Be kind.\n\nHi [/INST] Hello!</s>[INST] Why? [/INST]",
        legacy="[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }} [/INST]"
        "{{ if .Response }} {{ end }}{{ .Response }}</s>",
        jinja="{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.first else '')"
        " + message['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}",
    ),
    Family(
        "gemma-instruct",
        "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!"
        "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        legacy="<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}"
        "<end_of_turn>\n<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
        messages="{{- $system := .System }}{{- range $i, $_ := .Messages }}"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}"
        "{{- if eq .Role `user` }}<start_of_turn>user\n"
        "{{ if and $system (le $i 1) }}{{ $system }}\n\n{{ end }}{{ .Content }}<end_of_turn>\n"
        "{{- if $last }}\n<start_of_turn>model\n{{ end }}{{ end }}"
        "{{- if eq .Role `assistant` }}\n<start_of_turn>model\n{{ .Content }}<end_of_turn>\n"
        "{{ end }}{{ end }}",
        jinja="{%- if messages[0]['role'] == 'system' -%}"
        "{%- set first = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}"
        "{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{%- for message in loop_messages -%}{%- set role = 'model' if "
        "message['role'] == 'assistant' else message['role'] -%}"
        "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
        "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- endif -%}"
        "{{ '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
    ),
    Family(
        "phi-3",
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        legacy="{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}{{ if .Prompt }}"
        "<|user|>\n{{ .Prompt }}<|end|>\n{{ end }}<|assistant|>\n{{ .Response }}<|end|>\n",
        messages="{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}"
        "<|assistant|>\n",
        jinja="{% for message in messages %}{% if message['role'] == 'system' and "
        "message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ),
    Family(
        "zephyr",
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"
        "<|user|>\nWhy?</s>\n<|assistant|>\n",
        legacy="{{ if .System }}<|system|>\n{{ .System }}</s>\n{{ end }}"
        "{{ if .Prompt }}<|user|>\n{{ .Prompt }}</s>\n{{ end }}<|assistant|>\n{{ .Response }}</s>\n",
        jinja="{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token"
        " }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content']"
        " + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    ),
    Family(
        "vicuna",
        "Be kind. USER: Hi ASSISTANT: Hello!</s>USER: Why? ASSISTANT:",
        legacy="{{ if .System }}{{ .System }} {{ end }}USER: {{ .Prompt }} ASSISTANT:"
        "{{ if .Response }} {{ end }}{{ .Response }}</s>",
        jinja="{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    ),
    Family(
        "alpaca",
        "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### Instruction:\nWhy?\n\n"
        "### Response:\n",
        legacy="{{ if .System }}{{ .System }}\n\n{{ end }}{{ if .Prompt }}### Instruction:\n"
        "{{ .Prompt }}\n\n{{ end }}### Response:\n{{ .Response }}\n\n",
    ),
    Family(
        "command-r",
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello!<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        messages="{{- define `turn` }}<|START_OF_TURN_TOKEN|><|{{ . }}_TOKEN|>{{ end }}"
        "{{- range .Messages }}{{ if eq .Role `system` }}{{ template `turn` `SYSTEM` }}"
        "{{ else if eq .Role `user` }}{{ template `turn` `USER` }}"
        "{{ else }}{{ template `turn` `CHATBOT` }}{{ end }}{{ .Content }}<|END_OF_TURN_TOKEN|>"
        "{{ end }}{{ template `turn` `CHATBOT` }}",
    ),
    Family(
        "falcon-instruct",
        "System: Be kind.\nUser: Hi\nFalcon: Hello!\nUser: Why?\nFalcon:",
        legacy="{{ if .System }}System: {{ .System }}\n{{ end }}{{ if .Prompt }}User: "
        "{{ .Prompt }}\n{{ end }}Falcon:{{ if .Response }} {{ end }}{{ .Response }}\n",
    ),
    Family(
        "granite-instruct",
        "System:\nBe kind.\n\nQuestion:\nHi\n\nAnswer:\nHello!\n\nQuestion:\nWhy?\n\nAnswer:\n",
        legacy="{{ if .System }}System:\n{{ .System }}\n\n{{ end }}{{ if .Prompt }}Question:\n"
        "{{ .Prompt }}\n\n{{ end }}Answer:\n{{ .Response }}\n\n",
    ),
    Family(
        "openchat",
        "GPT4 Correct System: Be kind.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>"
        "GPT4 Correct Assistant: Hello!<|end_of_turn|>GPT4 Correct User: Why?<|end_of_turn|>"
        "GPT4 Correct Assistant:",
        legacy="{{ if .System }}GPT4 Correct System: {{ .System }}<|end_of_turn|>{{ end }}"
        "{{ if .Prompt }}GPT4 Correct User: {{ .Prompt }}<|end_of_turn|>{{ end }}"
        "GPT4 Correct Assistant:{{ if .Response }} {{ end }}{{ .Response }}<|end_of_turn|>",
        jinja="{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + "
        "message['content'] + '<|end_of_turn|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    ),
    Family(
        "solar-instruct",
        "### System:\nBe kind.\n\n### User:\nHi\n\n### Assistant:\nHello!\n\n### User:\nWhy?\n\n"
        "### Assistant:\n",
        legacy="{{ if .System }}### System:\n{{ .System }}\n\n{{ end }}{{ if .Prompt }}### User:\n"
        "{{ .Prompt }}\n\n{{ end }}### Assistant:\n{{ .Response }}\n\n",
    ),
    Family(
        "magicoder",
        "Be kind.\n\n@@ Instruction\nHi\n\n@@ Response\nHello!\n\n@@ Instruction\nWhy?\n\n"
        "@@ Response\n",
        legacy="{{ if .System }}{{ .System }}\n\n{{ end }}{{ if .Prompt }}@@ Instruction\n"
        "{{ .Prompt }}\n\n{{ end }}@@ Response\n{{ .Response }}\n\n",
    ),
    Family(
        "starcoder2-instruct",
        "Be kind.\n\n### Instruction\nHi\n\n### Response\nHello!<|endoftext|>\n\n### Instruction\n"
        "Why?\n\n### Response\n",
        legacy="{{ with .System }}{{ . }}\n\n{{ end }}{{ if .Prompt }}### Instruction\n"
        "{{ .Prompt }}\n\n{{ end }}### Response\n{{ .Response }}<|endoftext|>\n\n",
    ),
    Family(
        "chatqa",
        "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Why?\n\nAssistant:",
        legacy="{{ if .System }}System: {{ .System }}\n\n{{ end }}{{ if .Prompt }}User: "
        "{{ .Prompt }}\n\n{{ end }}Assistant:{{ if .Response }} {{ end }}{{ .Response }}\n\n",
    ),
    Family(
        "codellama-70b-instruct",
        "Source: system\n\n Be kind. <step> Source: user\n\n Hi <step> Source: assistant\n\n Hello!"
        " <step> Source: user\n\n Why? <step> Source: assistant\nDestination: user\n\n ",
        messages="{{- range .Messages }}Source: {{ .Role }}\n\n {{ .Content }} <step> {{ end }}"
        "Source: assistant\nDestination: user\n\n ",
        jinja="{% for message in messages %}{{ 'Source: ' + message['role'] + '\n\n ' + "
        "message['content'].strip() + ' <step> ' }}{% endfor %}"
        "{{ 'Source: assistant\nDestination: user\n\n ' }}",
    ),
    Family(
        "alfred",
        "<start_system>Be kind.<end_message><start_user>Hi<end_message><start_assistant>Hello!"
        "<end_message><start_user>Why?<end_message><start_assistant>",
        legacy="{{ if .System }}<start_system>{{ .System }}<end_message>{{ end }}{{ if .Prompt }}"
        "<start_user>{{ .Prompt }}<end_message>{{ end }}<start_assistant>{{ .Response }}"
        "<end_message>",
    ),
)

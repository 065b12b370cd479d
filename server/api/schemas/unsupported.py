"""Fields of OpenAI, vLLM and SGLang that are refused, each with what to do instead. To support one, remove it here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnsupportedField:
    """A known field that is refused. `accepted` are values that change nothing, which clients send by default."""

    hint: str = ""
    accepted: tuple[object, ...] = ()

    def message(self, name: str) -> str:
        """The error message for a field of this name."""
        hint = f": {self.hint}" if self.hint else ""
        if self.accepted:
            return f"This value of `{name}` is not supported, only {self.accepted_values}{hint}."
        return f"`{name}` is not supported{hint}."

    @property
    def accepted_values(self) -> str:
        """The accepted values as text, such as "`none` and `auto`"."""
        values = (value if isinstance(value, str) else json.dumps(value) for value in self.accepted)
        return " and ".join(f"`{value}`" for value in values)


_REQUEST_ID = UnsupportedField("send the header `x-request-id`")

UNSUPPORTED_FIELDS: Mapping[str, UnsupportedField] = {
    "suffix": UnsupportedField(),
    "audio": UnsupportedField(),
    "modalities": UnsupportedField(accepted=(["text"],)),
    "functions": UnsupportedField("use `tools`"),
    "function_call": UnsupportedField("use `tool_choice`", ("none", "auto")),
    "prediction": UnsupportedField(),
    "web_search_options": UnsupportedField(),
    "verbosity": UnsupportedField(),
    "prompt_cache_retention": UnsupportedField(),
    "use_beam_search": UnsupportedField("use `guidance`"),
    "length_penalty": UnsupportedField(),
    "spaces_between_special_tokens": UnsupportedField(),
    "truncation_side": UnsupportedField("the end of the prompt is kept"),
    "logprob_token_ids": UnsupportedField(),
    "return_tokens_as_token_ids": UnsupportedField("use `return_token_ids`"),
    "prompt_embeds": UnsupportedField(),
    "chat_template": UnsupportedField("it is a program, so it is the operator's to choose"),
    "documents": UnsupportedField("pass them in `chat_template_kwargs`"),
    "priority": UnsupportedField(),
    "request_id": _REQUEST_ID,
    "cache_salt": UnsupportedField(),
    "kv_transfer_params": UnsupportedField(),
    "vllm_xargs": UnsupportedField(),
    "regex": UnsupportedField("use `guided_regex`"),
    "ebnf": UnsupportedField("use `guided_grammar`"),
    "json_schema": UnsupportedField("use `response_format`"),
    "stop_regex": UnsupportedField(),
    "no_stop_trim": UnsupportedField("use `include_stop_str_in_output`"),
    "lora_path": UnsupportedField(),
    "input_ids": UnsupportedField("use `prompt`"),
    "custom_logit_processor": UnsupportedField("it is a program"),
    "return_hidden_states": UnsupportedField(),
    "rid": _REQUEST_ID,
}

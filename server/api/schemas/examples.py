"""Example requests and responses for `/openapi.json`, with the demo models. Tests send and validate all of them."""

from __future__ import annotations

from typing import Any

_QUESTION = [{"role": "user", "content": "Write one sentence about a film."}]
_GUIDANCE = {"pairs": {"positive": 1.0}, "beam_width": 2, "successors": 4, "chunk_length": 10}
_SUMMARY = {
    "method": "cbs",
    "beam_width": 4,
    "successors": 4,
    "chunk_length": 5,
    "chunks": 4,
    "sampled_tokens": 262,
    "scored_tokens": 310,
}
_SCORE = {"score": 4.25, "scores": {"positive": 4.25}}
_USAGE = {
    "prompt_tokens": 38,
    "completion_tokens": 17,
    "total_tokens": 55,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_TEXT = "It is a warm and funny film that I would gladly see again."
_FINGERPRINT = "w2s-0.1.0-483cb08e"
_ENVELOPE = {"created": 1763900000, "model": "smollm2-positive", "system_fingerprint": _FINGERPRINT}


def _examples(**bodies: Any) -> dict[str, Any]:
    return {name: {"summary": name.replace("_", " "), "value": body} for name, body in bodies.items()}


def _response(example: Any, stream: str | None = None) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {"application/json": {"example": example}}
    if stream is not None:
        content["text/event-stream"] = {"example": stream}
    return {200: {"content": content}}


CHAT = _examples(
    guided={"model": "smollm2-positive", "messages": _QUESTION, "max_tokens": 30},
    streamed={
        "model": "smollm2-positive",
        "messages": _QUESTION,
        "max_tokens": 30,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    guidance_in_the_request={"model": "smollm2", "messages": _QUESTION, "max_tokens": 30, "guidance": _GUIDANCE},
    tools_if_the_chat_template_supports_them={
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the weather in Bern?"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Returns the weather in a city.",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
                },
            }
        ],
        "max_tokens": 60,
    },
    continued={
        "model": "smollm2",
        "messages": [*_QUESTION, {"role": "assistant", "content": "The film is "}],
        "continue_final_message": True,
        "max_tokens": 30,
    },
)
CHAT_ANSWER = _response(
    {
        "id": "chatcmpl-4f1c",
        "object": "chat.completion",
        **_ENVELOPE,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "guidance": _SCORE,
            }
        ],
        "usage": _USAGE,
        "guidance": _SUMMARY,
    },
    'data: {"id": "chatcmpl-4f1c", "object": "chat.completion.chunk", "created": 1763900000, '
    '"model": "smollm2-positive", "system_fingerprint": "w2s-0.1.0-483cb08e", "choices": [{"index": 0, '
    '"delta": {"content": "It is a warm"}, "logprobs": null, "finish_reason": null}]}\n\ndata: [DONE]\n\n',
)
COMPLETION = _examples(
    guided={"model": "smollm2-positive", "prompt": "The film is", "max_tokens": 20},
    best_of={"model": "smollm2", "prompt": "The film is", "max_tokens": 20, "best_of": 4},
    search_round_by_round={
        "model": "smollm2-positive",
        "prompt": "The film is",
        "max_tokens": 20,
        "stream": True,
        "guidance": {"trace": "stream"},
    },
    several_prompts={"model": "smollm2", "prompt": ["The film is", "The book is"], "max_tokens": 20, "seed": 1},
)
COMPLETION_ANSWER = _response(
    {
        "id": "cmpl-9b2e",
        "object": "text_completion",
        **_ENVELOPE,
        "choices": [{"index": 0, "text": " a delight.", "logprobs": None, "finish_reason": "stop", "guidance": _SCORE}],
        "usage": _USAGE,
        "guidance": _SUMMARY,
    },
    'data: {"id": "cmpl-9b2e", "object": "text_completion", "created": 1763900000, "model": "smollm2-positive", '
    '"system_fingerprint": "w2s-0.1.0-483cb08e", "choices": [{"index": 0, "text": " a delight", "logprobs": null, '
    '"finish_reason": null}]}\n\ndata: [DONE]\n\n',
)
TOKENIZE = _examples(
    prompt={"model": "smollm2", "prompt": "Once upon a time", "return_token_strs": True},
    messages={"model": "smollm2", "messages": _QUESTION, "add_generation_prompt": True},
)
TOKENIZED = _response(
    {
        "count": 4,
        "max_model_len": 2048,
        "tokens": [6403, 1980, 253, 655],
        "token_strs": ["Once", "Ġupon", "Ġa", "Ġtime"],
    }
)
DETOKENIZE = _examples(tokens={"model": "smollm2", "tokens": [6403, 1980, 253, 655]})
DETOKENIZED = _response({"prompt": "Once upon a time"})
_SAMPLING: dict[str, Any] = {
    **{"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "max_tokens": None, "stop": [], "seed": None},
    **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
}
_MODEL = {
    **{"id": "smollm2", "object": "model", "created": 1763900000, "owned_by": "w2s", "max_model_len": 2048},
    "default_sampling": _SAMPLING,
    "default_guidance": None,
    "available_scorers": {"pairs": ["positive"], "reward_models": [], "scorers": []},
}
MODEL = _response(_MODEL)
MODELS = _response({"object": "list", "data": [_MODEL]})
VERSION = _response({"version": "0.1.0"})
ABOUT = _response({"name": "w2s", "version": "0.1.0", "links": {"docs": "/docs", "models": "/v1/models"}})

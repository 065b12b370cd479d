"""Bodies that mean no good: each is refused in OpenAI's shape, and the server goes on as if nothing had been."""

from __future__ import annotations

import gzip

import pytest

from tests.surface.raw import CHAT, COMPLETIONS, FINE, TOKENIZE, chatting, check_refusal, one, post

PATHS = pytest.mark.parametrize("path", [COMPLETIONS, CHAT, TOKENIZE, "/detokenize"])


def asking(field: bytes) -> bytes:
    return b'{"model":"smollm2","prompt":"x","max_tokens":2,' + field + b"}"


@PATHS
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"model"}',
        b'{"model":"smollm2","prompt":"\xff"}',
        b'{"model":"smollm2","prompt":"\xed\xa0\x80"}',  # half a surrogate pair, as UTF-8 never has it
        b'{"model":"smollm2","prompt":"a\x00b"}',  # a control character that JSON wants escaped
        b'{"model":"smollm2","prompt":"x"} trailing',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model":"smollm2","prompt":"x","seed":' + b"9" * 5000 + b"}",
        gzip.compress(FINE, mtime=0),  # the time of day would give the test another name in every process
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_json_object(server: str, path: str, body: bytes) -> None:
    check_refusal(one(server, post(path, body)), 400)


DEEP = [
    ("metadata", asking(b'"metadata":%s')),
    ("chat_template_kwargs", chatting(b'"chat_template_kwargs":%s')),
    ("guided_json", asking(b'"guided_json":%s')),
    ("schema", asking(b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":%s}}')),
    ("parameters", chatting(b'"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]')),
    (
        "required",
        chatting(b'"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":%s}}]'),
    ),
    ("prompt", b'{"model":"smollm2","prompt":%s}'),
    ("stop", asking(b'"stop":%s')),
    ("guidance", asking(b'"guidance":%s')),
    ("content", b'{"model":"smollm2","messages":[{"role":"user","content":%s}]}'),
]


@pytest.mark.parametrize("depth", [90, 101, 500, 1500, 20_000])
@pytest.mark.parametrize(("field", "body"), DEEP, ids=[name for name, _ in DEEP])
def test_values_that_are_nested_deeply(server: str, field: str, body: bytes, depth: int) -> None:
    value = b'{"a":' * depth + b"{}" + b"}" * depth
    answered = one(server, post(CHAT if b"messages" in body else COMPLETIONS, body.replace(b"%s", value)))
    if answered.status != 200:
        check_refusal(answered, 400)
    assert answered.status == 400 or depth < 100


@pytest.mark.parametrize(
    "value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"9" * 4000, b"0." + b"1" * 4000, b"1e-400"]
)
@pytest.mark.parametrize(
    "field",
    [
        "temperature",
        "top_p",
        "seed",
        "max_tokens",
        "n",
        "presence_penalty",
        "logprobs",
        "top_k",
        "min_tokens",
        "logit_bias",
    ],
)
def test_numbers_that_no_machine_has(server: str, field: str, value: bytes) -> None:
    told = b'{"7":' + value + b"}" if field == "logit_bias" else value
    answered = one(server, post(COMPLETIONS, asking(b'"' + field.encode() + b'":' + told)))
    if answered.status != 200:  # 0.111… is a temperature, and 1e-400 is 0
        check_refusal(answered, 400)
        assert answered.error["param"].startswith(field) or "JSON" in answered.error["message"]
    assert (answered.status == 200) <= value.startswith((b"0.", b"1e-"))


@pytest.mark.parametrize(
    "field",
    [
        b'"user":%s',
        b'"metadata":{"a":%s}',
        b'"metadata":{%s:1}',
        b'"chat_template_kwargs":{"mood":%s}',
        b'"chat_template_kwargs":{%s:1}',
        b'"stop":%s',
        b'"stop":[%s]',
        b'"bad_words":[%s]',
        b'"logit_bias":{%s:1}',
        b'"guidance":{"pairs":{%s:1}}',
        b'"guided_regex":%s',
        b'"guided_choice":[%s]',
        b'"guided_grammar":%s',
        b'"guided_json":{"const":%s}',
        b'"guided_json":{"type":"object","properties":{%s:{}}}',
        b'"guided_json":%s',
        b'"response_format":{"type":%s}',
        b'"tools":[{"type":"function","function":{"name":"f","description":%s}}]',
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{"title":%s}}}]',
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{%s:1}}}]',
        b'"tools":[{"type":"function","function":{"name":%s}}],"tool_choice":"required"',
        b'"tool_choice":%s',
        b'"service_tier":%s',
        b"%s:1",
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "text", [rb'"\ud800"', rb'"\udfff\ud800"', rb'"\u0000"', rb'"a\u0000b"', '"\U000e0001\u202e"'.encode()]
)
def test_text_that_is_none(server: str, field: bytes, text: bytes) -> None:
    answered = one(server, post(CHAT, chatting(field.replace(b"%s", text))))
    if answered.status != 200:
        check_refusal(answered, 400, 404)


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udfffx", rb"x\ud83d"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, b'{"model":"smollm2","prompt":"%s"}'),
        (COMPLETIONS, b'{"model":"smollm2","prompt":["x","%s"]}'),
        (CHAT, b'{"model":"smollm2","messages":[{"role":"user","content":"%s"}]}'),
        (CHAT, b'{"model":"smollm2","messages":[{"role":"user","content":[{"type":"text","text":"%s"}]}]}'),
        (TOKENIZE, b'{"model":"smollm2","prompt":"%s"}'),
        (COMPLETIONS, b'{"model":"%s","prompt":"x"}'),
    ],
)
def test_half_surrogate_pairs_are_refused_where_text_is_read(server: str, path: str, body: bytes, text: bytes) -> None:
    check_refusal(one(server, post(path, body.replace(b"%s", text))), 400, 404)


def test_of_equal_keys_the_last_counts(server: str) -> None:
    body = b'{"model":"smollm2","prompt":"x","max_tokens":2,"model":"nobody"}'
    check_refusal(one(server, post(COMPLETIONS, body)), 404)
    assert one(server, post(COMPLETIONS, b'{"model":"nobody",' + FINE[1:])).status == 200

"""Security of model folders: no code from a model runs, and no request makes the server download or run anything."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from server.settings.config import ServerConfig
from tests.server.conftest import Connect
from tests.tiny import byte_tokenizer, save_tiny, save_tiny_classifier
from w2s_core.errors import RequestError
from w2s_core.pool.specs import ModelSpec, RewardHead, WorkerSpec
from w2s_core.structured.grammar_compiling import compile_grammar, new_matcher, new_tokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt
from w2s_core.worker.loading import load_models

CHAT = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}


REWARD = RewardHead("reward_models.x")


def saved(folder: Path, reward: RewardHead | None) -> Path:
    return save_tiny(folder) if reward is None else save_tiny_classifier(folder)


def load(folder: Path, reward: RewardHead | None) -> None:
    spec = {"m": ModelSpec(str(folder), trust_remote_code=False, reward=reward)}
    load_models(WorkerSpec(device="cpu", dtype="float32", threads=1, kv_cache_bytes=10**6, models=spec))


# A model's folder


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("reward", [None, REWARD])
@pytest.mark.parametrize("harmless", [True, False])
def test_pickled_weights_are_not_even_looked_at(tmp_path: Path, harmless: bool, reward: RewardHead | None) -> None:
    folder, proof = saved(tmp_path / "model", reward), tmp_path / "proof"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if harmless:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(proof)))
    with pytest.raises(OSError, match="safetensors"):
        load(folder, reward)
    assert not proof.exists()


@pytest.mark.parametrize("reward", [None, REWARD])
def test_code_in_a_models_folder_is_not_run(tmp_path: Path, reward: RewardHead | None) -> None:
    folder, proof = saved(tmp_path / "model", reward), tmp_path / "proof"
    config = json.loads((folder / "config.json").read_text())
    kind = "AutoModelForCausalLM" if reward is None else "AutoModelForSequenceClassification"
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", kind: "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass C: ...\nclass M: ...\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder, reward)
    assert not proof.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_is_in_a_sandbox(tmp_path: Path, template: str) -> None:
    byte_tokenizer(template).save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    with pytest.raises(RequestError, match="chat template rejects") as refusal:
        tokenizer.encode_chat(ChatPrompt(({"role": "user", "content": "x"},)))
    assert "root:" not in str(refusal.value)


# A request


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("somebody asks the network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "change",
    [
        {"trust_remote_code": True},
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"mm_processor_kwargs": {}},
        {"lora_request": {"path": "/x"}},
        {"guided_decoding_backend": "x"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "/etc/passwd"}}]}]},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.usefixtures("_no_network")
async def test_no_field_makes_us_fetch_or_run_anything(
    connect: Connect, change: dict[str, Any], tokenizer: Any
) -> None:
    client = await connect()
    if "chat_template_kwargs" in change:  # the template itself decides about its variables
        with pytest.raises(RequestError, match="set by the server"):
            tokenizer.encode_chat(
                ChatPrompt(tuple(CHAT["messages"]), template_variables=change["chat_template_kwargs"])
            )
        return
    response = await client.post("/v1/chat/completions", json=CHAT | change)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(next(iter(change)))


@pytest.fixture
def tokenizer(tmp_path: Path) -> HFTokenizer:
    byte_tokenizer("{{ messages }}").save_pretrained(tmp_path)
    return HFTokenizer(str(tmp_path))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../plain", "http://x/plain", "demo:reviews-negative", "plain\x00", "gpt2"]
)
async def test_a_models_name_is_a_name_and_no_path(connect: Connect, name: str) -> None:
    client = await connect(config=ServerConfig())
    for path in ("/v1/chat/completions", "/tokenize"):
        body = CHAT if "chat" in path else {"prompt": "x"}
        response = await client.post(path, json=body | {"model": name})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("reference", ["http://127.0.0.1/schema.json", "file:///etc/passwd", "other.json"])
def test_a_schemas_reference_is_not_followed(reference: str) -> None:
    tokenizer = new_tokenizer(byte_tokenizer().backend_tokenizer.to_str(), [])
    assert new_matcher(tokenizer, compile_grammar("json", json.dumps({"type": "string"}))).get_error() == ""
    assert new_matcher(tokenizer, compile_grammar("json", json.dumps({"$ref": reference}))).get_error()

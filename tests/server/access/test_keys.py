"""API keys: their sources, rejected configurations, and what the log contains."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Any

import pytest

from server.access.keys import KeyRing, build_key_ring
from server.access.policy import Policy, load_keys
from server.settings.config import ServerConfig, load_settings
from tests.server.conftest import Connect
from w2s_core.errors import ConfigurationError

PATH = "/v1/completions"
BODY = {"model": "plain", "prompt": "x", "max_tokens": 5}


def written(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def name_of(ring: KeyRing, key: str) -> str | None:
    found = ring.find(key)
    return found.name if found else None


# Where they come from


def test_a_file_names_keys_hashes_and_limits(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"carols").hexdigest()
    path = written(
        tmp_path,
        f"alice: alices\nbob: {{key: bobs, max_concurrent_requests: 2, tokens_per_minute: 60}}\n"
        f"carol: {{key_sha256: {digest}}}\n",
    )
    ring = build_key_ring({}, path)
    assert {key: name_of(ring, key) for key in ("alices", "bobs", "carols", "alice", digest, "")} == {
        "alices": "alice",
        "bobs": "bob",
        "carols": "carol",
        "alice": None,
        digest: None,
        "": None,
    }
    bob = ring.find("bobs")
    assert bob is not None
    assert (bob.max_concurrent_requests, bob.tokens_per_minute) == (2, 60)


def test_keys_of_the_settings_and_of_the_file_all_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2S_SERVER__API_KEYS", "one,two")
    monkeypatch.setenv("W2S_SERVER__API_KEYS_FILE", str(written(tmp_path, "three: drei\n")))
    ring = load_keys(load_settings().server)
    assert [name_of(ring, key) for key in ("one", "two", "drei")] == ["key-1", "key-2", "three"]


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    whole = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or whole(a, b))
    ring = load_keys(ServerConfig(api_keys=("first", "second", "third")))
    assert name_of(ring, "first") == "key-1"
    assert len(compared) == 3, "also those behind the one that fits"
    assert {len(side) for pair in compared for side in pair} == {32}, "hashes: not even the length can be timed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key"),
        ("# nothing", "holds no key"),
        ("alice: ''", "alice.key: must be printable ASCII without spaces, and not empty"),
        ("alice:", "alice: needs exactly one of"),
        ("alice: 'sesame sesame'", "alice.key: must be printable"),
        ("alice: sésame", "alice.key: must be printable"),
        ("alice: 123456", "alice.key: Input should be a valid string"),
        ("alice: {}", "alice: needs exactly one of"),
        ("alice: {key: sesame, key_sha256: " + "a" * 64 + "}", "alice: needs exactly one of"),
        ("alice: {key_sha256: sesame}", "alice.key_sha256"),
        ("alice: {key: sesame, tokens_per_minute: 0}", "alice.tokens_per_minute"),
        ("alice: {key: sesame, max_concurrent_requests: many}", "alice.max_concurrent_requests"),
        ("alice: {key: sesame, limit: 1}", "alice.limit: unknown key"),
        ("alice: sesame\nbob: sesame", "`alice` and `bob` are the same key"),
        ("- sesame", "must be a mapping"),
        ("sesame", "must be a mapping"),
        ("alice: [sesame", "is not YAML"),
        ("alice: \tsesame: sesame", "is not YAML"),
        ("'al ice': x", "al ice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_unseen(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.api_keys") as refusal:
        build_key_ring({}, written(tmp_path, content))
    assert message in str(refusal.value)
    assert "sesame" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.api_keys_file: .*nowhere: cannot be read"):
        build_key_ring({}, tmp_path / "nowhere")
    (tmp_path / "keys.yaml").write_bytes(b"alice: sesame\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8") as refusal:
        build_key_ring({}, tmp_path / "keys.yaml")
    assert "sesame" not in str(refusal.value)


def test_a_name_may_stand_in_one_place_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.api_keys has `alice` as well"):
        load_keys(ServerConfig(api_keys={"alice": "one"}, api_keys_file=written(tmp_path, "alice: two\n")))


@pytest.mark.parametrize("value", ["", " ", "one,,two", '[""]', '{"alice": ""}'])
def test_an_empty_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("W2S_SERVER__API_KEYS", value)
    with pytest.raises(ConfigurationError, match=r"server\.api_keys\.\S+\.key: must be"):
        load_settings()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_all_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    path = written(tmp_path, "alice: sesame\n")
    path.chmod(mode)
    build_key_ring({}, path)
    assert ("can be read by every user" in caplog.text) == warned
    assert "sesame" not in caplog.text


def test_no_key_is_kept_or_shown(tmp_path: Path) -> None:
    config = ServerConfig(api_keys={"alice": "sesame"}, api_keys_file=written(tmp_path, "bob: sesame2\n"))
    policy = Policy(config)
    shown = [repr(config), repr(policy.keys.find("sesame")), str(config.model_dump()), repr(vars(policy.keys))]
    assert not [text for text in shown if "sesame" in text.replace("api_keys", "")]


# At the door


async def test_a_stranger_is_refused_before_the_body_is_read(connect: Connect) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",), max_body_bytes=10**6))
    read: list[int] = []

    async def body() -> Any:
        for number in range(3):
            read.append(number)
            yield b"x" * 1000

    assert (await client.post(PATH, content=body(), headers=bearing("two"))).status_code == 401
    assert read == []
    assert (await client.post(PATH, content=body(), headers=bearing("one"))).status_code == 400
    assert read == [0, 1, 2]


async def test_the_log_has_the_keys_name_and_never_the_key(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = await connect(config=ServerConfig(api_keys={"alice": "sesame-1"}))
    for key in ("sesame-1", "sesame-wrong"):
        await client.post(PATH, json=BODY, headers=bearing(key))
    lines: list[Any] = [record.msg for record in caplog.records if record.name == "w2s.request"]
    assert [(line["status"], line.get("api_key")) for line in lines] == [(200, "alice"), (401, None)]
    assert "sesame" not in caplog.text

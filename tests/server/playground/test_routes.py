"""The playground's routes: the page and its files, with their types, entity tags and security headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.playground.routes import CONTENT_SECURITY_POLICY
from server.settings.config import ServerConfig
from tests.server.conftest import Connect

FOLDER = Path(__file__).parents[3] / "server" / "playground" / "static"
SOURCES = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
TYPES = {"html": "text/html", "css": "text/css", "js": "javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("path", ["/playground", *(f"/playground/{name}" for name in SOURCES)])
async def test_a_file_has_its_type_and_the_headers_that_guard_it(connect: Connect, path: str) -> None:
    client = await connect(config=ServerConfig(api_keys=("one",)))
    response = await client.get(path)
    assert response.status_code == 200
    assert TYPES[path.rpartition(".")[2] if "." in path else "html"] in response.headers["content-type"].split(";")[0]
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in response.headers


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert policy.pop("img-src") == "'self'"
    assert policy == {
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"),
        **dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'"),
    }


async def test_a_browser_that_has_it_is_sent_nothing_again(connect: Connect) -> None:
    client = await connect()
    first = await client.get("/playground/main.js")
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await client.get("/playground/main.js", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert again.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    since = {"if-modified-since": first.headers["last-modified"]}
    assert (await client.get("/playground/main.js", headers=since)).status_code == 304
    assert (await client.get("/playground/main.js", headers={"if-none-match": '"other"'})).status_code == 200
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "../config.py",
        "%2e%2e/routes.py",
        "..%2froutes.py",
        "static/main.js",
        "a%00b",
        "x" * 300,
        "/etc/passwd",
        "",
    ],
)
async def test_what_is_not_there(connect: Connect, path: str) -> None:
    response = await (await connect()).get(f"/playground/{path}")
    if path == "":
        assert (response.status_code, response.headers["location"]) == (307, "../playground")
    else:
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


async def test_it_can_be_turned_off(connect: Connect) -> None:
    on, off = await connect(), await connect(config=ServerConfig(playground=False))
    assert (await on.get("/")).json()["links"]["playground"] == "/playground"
    assert "playground" not in (await off.get("/")).json()["links"]
    for path in ("/playground", "/playground/", "/playground/main.js"):
        assert (await off.get(path)).status_code == 404


def test_the_page_names_files_that_exist_and_no_file_is_there_in_vain() -> None:
    named = {"index.html"}
    for name, source in SOURCES.items():
        found = re.findall(r'(?:src|href)="playground/([^"]+)"', source) if name == "index.html" else []
        found += re.findall(r'from "\./([^"]+)"', source)
        assert {*found} <= SOURCES.keys(), name
        named |= {*found}
    assert named == SOURCES.keys()


def test_the_first_load_is_small() -> None:
    assert sum(len(source.encode()) for source in SOURCES.values()) < 300_000


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_source_turns_text_into_markup_or_keeps_anything(name: str) -> None:
    """What a model says reaches the document as text only, and what a visitor types is gone with the page."""
    source = SOURCES[name]
    assert len(source.splitlines()) <= 300
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc"
    keeps = r"localStorage|sessionStorage|indexedDB|\.cookie\b|serviceWorker|\bcaches\b"
    assert not re.search(f"{forbidden}|{keeps}", source)
    assert not re.search(r" style=| on\w+=\"|<style|javascript:", source)
    addresses = re.findall(r"https?://[^\s\"')]+", source)
    assert all("w3.org" in address or "spec.whatwg.org" in address for address in addresses)

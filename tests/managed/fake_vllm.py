"""A fake `vllm serve`, as a program of its own (`install`): the provider of tests/remote behind vLLM's routes and key.
Where the model's folder has no tokenizer, it has its health alone.

Like vLLM it has an engine in a process of its own, which would outlive it. The variable FAKE_VLLM is what it does:
`serve`, `fail` before it is healthy, never become healthy (`wait`), or ignore SIGTERM (`stay`). A file named `then` in
its model's folder says so for the next start. Its command line goes to the file `argv` there.
With FAKE_VLLM_SESSION the engine leaves the process group.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

ROOT = Path(__file__).parents[2]
ENGINE = "import time; time.sleep(1000)"


def install(folder: Path) -> Path:
    """Makes the program `vllm` in `folder` and returns its path."""
    program = folder / "vllm"
    source = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.managed.fake_vllm import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{source}")
    program.chmod(0o755)
    return program


def behaviour(folder: Path) -> str:
    """What to do at this start."""
    then = folder / "then"
    return then.read_text() if then.exists() else os.environ.get("FAKE_VLLM", "serve")


def served(folder: Path, kind: str) -> FastAPI:
    app = provider(folder) if (folder / "tokenizer.json").exists() else FastAPI()
    state = {"healthy": kind != "wait"}

    @app.middleware("http")
    async def check_key(request: Request, proceed):  # type: ignore[no-untyped-def]
        authorized = request.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
        if request.url.path.startswith("/v1") and not authorized:
            return Response('{"error": "Unauthorized"}', 401)
        return await proceed(request)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if state["healthy"] else 503)

    @app.post("/sicken")
    async def sicken() -> None:
        state["healthy"] = False

    return app


def provider(folder: Path) -> FastAPI:
    from tests.remote.provider_process import LETTERS, application  # slow to import
    from w2s_core.text.tokenizer import HFTokenizer

    return application(HFTokenizer(str(folder)), {"v1": LETTERS["large"]}, gated="v1")


def main() -> None:
    parser = ArgumentParser()
    for name in ("serve", "model"):
        parser.add_argument(name)
    for name in ("--served-model-name", "--host", "--port"):
        parser.add_argument(name)
    arguments, _ = parser.parse_known_args()
    folder = Path(arguments.model)
    kind = behaviour(folder)
    (folder / "argv").write_text(json.dumps(sys.argv))
    os.environ["FAKE_VLLM_MODEL"] = str(folder)  # by which a test finds the engine
    subprocess.Popen([sys.executable, "-c", ENGINE], start_new_session="FAKE_VLLM_SESSION" in os.environ)
    say(f"(APIServer pid={os.getpid()}) INFO 11-27 04:22:29 [api.py:1] this is a fake that will {kind}")
    say(f"WARNING 11-27 04:22:29 [api.py:2] the key is {os.environ['VLLM_API_KEY']}")
    if kind == "fail":
        say("ValueError: no such model")
        sys.exit(3)
    if kind == "stay":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = uvicorn.Config(
        served(folder, kind), arguments.host, int(arguments.port), log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    if kind == "stay":
        server.capture_signals = nullcontext  # type: ignore[method-assign]
    server.run()


def say(text: str) -> None:
    print(text, flush=True)

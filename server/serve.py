"""`w2s serve`: listen at once, load, say when it is ready, stop cleanly."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import click

from server.access.keys import KeyRing
from server.access.policy import Policy, keys_of
from server.app import create_app
from server.engine_host import EngineHost
from server.http.protocol import http_config
from server.http.shutdown import GracefulServer
from server.http.tls import load_certificate, tls_context
from server.logs.format import log_to_stderr
from server.settings.config import ServerConfig, Settings
from server.settings.reload import changes, need_a_restart
from w2s_core.errors import ConfigurationError, W2SError

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

logger = logging.getLogger(__name__)

EXIT_LOADING_FAILED = 1
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses that one listens on but cannot call


def run(settings: Settings, again: Callable[[], Settings]) -> int:
    """Serves until a signal comes; at SIGHUP reads the settings `again`. Returns the exit code: 0, or 1 when the models
    could not be loaded.

    Raises ConfigurationError when it cannot listen.
    """
    log_to_stderr(settings.server.log_level, settings.server.log_format)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(settings.server, "port"))
        sockets = [listening]
        if settings.server.admin_port is not None:
            sockets.append(stack.enter_context(listen(settings.server, "admin_port")))
        return _Serving(settings, again, sockets).run()


class _Serving:
    """One run of the server; `sockets`: the public one, then the administrator's, if any. The engine's host calls back
    when loading is over."""

    def __init__(self, settings: Settings, again: Callable[[], Settings], sockets: list[socket.socket]) -> None:
        self._settings = settings
        self._began_with = settings
        self._again = again
        self._sockets = sockets
        self._exit_code = 0
        self._tls = tls_context(settings.server)
        self._urls = [url_of(listening, tls=self._tls is not None) for listening in sockets]
        self._host = EngineHost(self._load, self._ready, self._failed)
        config = settings.server
        if config.admin_port is not None:
            config = config.model_copy(update={"admin_port": sockets[-1].getsockname()[1]})
        app = create_app(self._host, config)
        self._policy: Policy = app.state.policy
        self._server = GracefulServer(
            http_config(app, self._tls), self._host.drain, config.drain_timeout_s, self._reload
        )

    def run(self) -> int:
        # A second signal is raised again by uvicorn for whoever handled it before: us, and all is done.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
        signal.signal(signal.SIGHUP, self._server.handle_hangup)
        self._say(f"Listening at {self._urls[0]}; loading the models ...")
        for url in self._urls[1:]:
            self._say(f"Metrics and probes at {url}")
        try:
            self._server.run(sockets=self._sockets)
        except SystemExit as left:
            if left.code:
                raise
        return self._exit_code

    def _load(self) -> Engine:
        from w2s_core.build.engine import build_engine  # slow to import: the port is open by now

        return build_engine(self._settings.engine_config())

    def _reload(self) -> None:
        """Whatever is wrong, the configuration before stays, as a whole."""
        try:
            settings = self._again()
            changed = changes(self._settings, settings)
            if stuck := need_a_restart(changed, self._settings.server, settings.server):
                raise ConfigurationError(f"{', '.join(stuck)}: cannot change without a restart")
            keys = keys_of(settings.server)
            tls_context(settings.server)  # tried out: a broken certificate must not be half loaded
            if self._tls is not None:
                load_certificate(self._tls, settings.server)
        except ConfigurationError as error:
            logger.error("The configuration is not reloaded, the one before stays: %s", error)
        except Exception:
            logger.exception("The configuration is not reloaded, the one before stays")
        else:
            self._apply(settings, keys)
            logger.info(
                "The configuration is reloaded; changed: %s", ", ".join(changed) or "at most the files it names"
            )

    def _apply(self, settings: Settings, keys: KeyRing) -> None:
        self._settings = settings
        self._policy.change(settings.server, keys)
        self._server.timeout_s = settings.server.drain_timeout_s
        logging.getLogger().setLevel(settings.server.log_level.upper())
        if self._host.loaded is not None:
            self._reconfigure(self._host.loaded)

    def _reconfigure(self, engine: Engine) -> None:
        config = self._settings.engine_config()
        engine.reconfigure(config.served, config.limits)

    def _ready(self, engine: Engine) -> None:
        if self._settings is not self._began_with:
            self._reconfigure(engine)
        key = "$API_KEY" if self._policy.keys else None  # we have only hashes of them
        self._say(ready_message(self._urls[0], list(engine.served_models), key))

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, W2SError):
            logger.error("loading failed", exc_info=error)
        self._say(f"w2s: the models could not be loaded: {error or type(error).__name__}")
        self._exit_code = EXIT_LOADING_FAILED
        self._server.should_exit = True

    def _say(self, message: str) -> None:
        """To a person; where logs are JSON, to the program that reads them: nothing else may come between."""
        if self._settings.server.log_format == "json":
            logger.info(message.strip())
        else:
            click.echo(message, err=True)


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


def listen(config: ServerConfig, key: str = "port") -> socket.socket:
    """A listening socket, its port `server.{key}`: clients may come before the models do. Raises ConfigurationError
    naming the address.

    What it accepts sends at once: an answer's headers and body are two writes, and the second must not wait 40 ms for
    the client to acknowledge the first. asyncio sees to that only for sockets that it opened itself.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    port: int = getattr(config, key)
    try:
        listening = socket.create_server((config.host, port), family=family, backlog=2048)
    except OSError as error:
        where = f"server.host {config.host}, server.{key} {port}"
        raise ConfigurationError(f"cannot listen at {where}: {error.strerror or error}") from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket, *, tls: bool = False) -> str:
    """Where a client on this machine reaches the socket."""
    host, port, *_ = listening.getsockname()
    host = _EVERYWHERE.get(host, host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def ready_message(url: str, names: Sequence[str], api_key: str | None) -> str:
    """What to tell the operator: the URL, the models, and a command that works when pasted, `api_key` included.

    It calls the last model: in the demo, the guided one.
    """
    body = json.dumps({"model": names[-1], "messages": [{"role": "user", "content": "Tell me about the film."}]})
    headers = ["-H 'Content-Type: application/json'"]
    if api_key is not None:
        headers.append(f'-H "Authorization: Bearer {api_key}"')
    curl = " \\\n    ".join([f"curl {url}/v1/chat/completions", *headers, f"-d {shlex.quote(body)}"])
    return f"\nReady at {url} · models: {', '.join(names)}\n\nTry:\n  {curl}\n"

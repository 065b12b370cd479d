"""`w2s serve`: opens the port, loads the models, announces readiness, reloads on SIGHUP, shuts down cleanly."""

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
from server.access.policy import Policy, load_keys
from server.app import create_app, system_fingerprint
from server.commands.errors import EXIT_CONFIGURATION
from server.engine_host import EngineHost
from server.http.protocol import http_config
from server.http.shutdown import GracefulServer
from server.http.tls import load_certificate, tls_context
from server.logs.format import configure_logging
from server.settings.config import ServerConfig, Settings
from server.settings.reload import changed_keys, keys_needing_restart
from w2s_core.config import ManagedLargeModelConfig
from w2s_core.errors import ConfigurationError, UnsupportedModelError, W2SError
from w2s_core.managed.command import find_program

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine

logger = logging.getLogger(__name__)

EXIT_LOADING_FAILED = 1
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # for wildcard addresses, which a client cannot connect to


def run(settings: Settings, load_settings_again: Callable[[], Settings]) -> int:
    """Serves until a signal arrives, and returns the exit code: 0, or 1 when the models could not be loaded.

    It is 2 when a model cannot run here as it is configured.

    `load_settings_again` is called on SIGHUP. Raises ConfigurationError when the server cannot listen, or the program
    of a managed vLLM is not there.
    """
    configure_logging(settings.server.log_level, settings.server.log_format)
    for name, model in settings.large_models.items():
        if isinstance(model, ManagedLargeModelConfig):
            find_program(name, model)
    with ExitStack() as stack:
        sockets = [stack.enter_context(listen(settings.server, "port"))]
        if settings.server.admin_port is not None:
            sockets.append(stack.enter_context(listen(settings.server, "admin_port")))
        return _ServerRun(settings, load_settings_again, sockets).run()


class _ServerRun:
    """One run of the server. `sockets` are the public one and the admin port's, if there is one.

    The engine host calls `_on_ready` or `_on_loading_failed` when loading has ended.
    """

    def __init__(
        self, settings: Settings, load_settings_again: Callable[[], Settings], sockets: list[socket.socket]
    ) -> None:
        self._settings = settings
        self._initial_settings = settings
        self._load_settings_again = load_settings_again
        self._sockets = sockets
        self._exit_code = 0
        self._tls = tls_context(settings.server)
        self._urls = [socket_url(listening, tls=self._tls is not None) for listening in sockets]
        self._host = EngineHost(self._load, self._on_ready, self._on_loading_failed)
        config = settings.server
        if config.admin_port is not None:  # 0 stands for a free port, which is known by now
            config = config.model_copy(update={"admin_port": sockets[-1].getsockname()[1]})
        app = create_app(self._host, config, settings.fingerprint)
        self._state = app.state
        self._policy: Policy = app.state.policy
        self._server = GracefulServer(
            http_config(app, self._tls), self._host.drain, config.drain_timeout_s, self._reload
        )

    def run(self) -> int:
        """Runs until shutdown; returns the exit code."""
        # uvicorn raises a second signal again for the handlers that were installed before its own: these, which exit.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _exit_cleanly)
        signal.signal(signal.SIGHUP, self._server.handle_hangup)
        self._announce(f"Listening at {self._urls[0]}; loading the models ...")
        for url in self._urls[1:]:
            self._announce(f"Metrics and probes at {url}")
        try:
            self._server.run(sockets=self._sockets)
        except SystemExit as system_exit:
            if system_exit.code:
                raise
        return self._exit_code

    def _load(self) -> Engine:
        from w2s_core.build.engine import build_engine  # slow to import: the port is open by now

        return build_engine(self._settings.engine_config())

    def _reload(self) -> None:
        """Loads and applies the settings again. On any error all of the current settings stay in effect."""
        try:
            settings = self._load_settings_again()
            changed = changed_keys(self._settings, settings)
            if need_restart := keys_needing_restart(changed, self._settings.server, settings.server):
                raise ConfigurationError(f"{', '.join(need_restart)}: cannot change without a restart")
            keys = load_keys(settings.server)
            tls_context(settings.server)  # checks the certificate first: a broken one must not be half loaded
            if self._tls is not None:
                load_certificate(self._tls, settings.server)
        except ConfigurationError as error:
            logger.error("The configuration is not reloaded; the current one stays in effect: %s", error)
        except Exception:
            logger.exception("The configuration is not reloaded; the current one stays in effect")
        else:
            self._apply(settings, keys)
            changes = f"changed: {', '.join(changed)}" if changed else "no key changed; its files were read again"
            logger.info("The configuration is reloaded; %s", changes)

    def _apply(self, settings: Settings, keys: KeyRing) -> None:
        self._settings = settings
        self._policy.update(settings.server, keys)
        self._state.system_fingerprint = system_fingerprint(settings.fingerprint)
        self._server.timeout_s = settings.server.drain_timeout_s
        logging.getLogger().setLevel(settings.server.log_level.upper())
        if self._host.loaded_engine is not None:
            self._reconfigure(self._host.loaded_engine)

    def _reconfigure(self, engine: Engine) -> None:
        config = self._settings.engine_config()
        engine.reconfigure(config.served_models, config.limits)

    def _on_ready(self, engine: Engine) -> None:
        if self._settings is not self._initial_settings:  # reloaded while the models were loading
            self._reconfigure(engine)
        api_key = "$API_KEY" if self._policy.keys else None  # a placeholder: the server keeps only hashes of keys
        playground = f"{self._urls[0]}/playground" if self._policy.config.playground else None
        self._announce(ready_message(self._urls[0], list(engine.served_models), api_key, playground))

    def _on_loading_failed(self, error: Exception) -> None:
        if not isinstance(error, W2SError):
            logger.error("loading failed", exc_info=error)
        self._announce(f"w2s: the models could not be loaded: {error or type(error).__name__}")
        self._exit_code = EXIT_CONFIGURATION if isinstance(error, UnsupportedModelError) else EXIT_LOADING_FAILED
        self._server.should_exit = True

    def _announce(self, message: str) -> None:
        """Writes to stderr; with JSON logs as a log record, so that every line of the output stays JSON."""
        if self._settings.server.log_format == "json":
            logger.info(message.strip())
        else:
            click.echo(message, err=True)


def _exit_cleanly(*_: object) -> NoReturn:
    sys.exit(0)


def listen(config: ServerConfig, port_key: str = "port") -> socket.socket:
    """A listening socket on `server.host` and the port `server.{port_key}`. Raises ConfigurationError naming both.

    It sets TCP_NODELAY, which accepted connections inherit: a response's headers and body are two writes, and the
    second would wait 40 ms for the client to acknowledge the first. asyncio sets it only on sockets that it opened.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    port: int = getattr(config, port_key)
    try:
        listening = socket.create_server((config.host, port), family=family, backlog=2048)
    except OSError as error:
        where = f"server.host {config.host}, server.{port_key} {port}"
        raise ConfigurationError(f"cannot listen at {where}: {error.strerror or error}") from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def socket_url(listening: socket.socket, *, tls: bool = False) -> str:
    """The URL at which a client on this machine reaches the socket."""
    host, port, *_ = listening.getsockname()
    host = _LOOPBACK.get(host, host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def ready_message(url: str, names: Sequence[str], api_key: str | None, playground: str | None = None) -> str:
    """The message for the operator: the URL, the served models, the playground, and a curl command that can be pasted.

    The command calls the last model, which in the demo is the guided one, and sends `api_key` if there is one.
    """
    messages = [{"role": "user", "content": "How was the movie?"}]
    body = json.dumps({"model": names[-1], "max_tokens": 40, "messages": messages})
    headers = ["-H 'Content-Type: application/json'"]
    if api_key is not None:
        headers.append(f'-H "Authorization: Bearer {api_key}"')
    curl = " \\\n    ".join([f"curl {url}/v1/chat/completions", *headers, f"-d {shlex.quote(body)}"])
    hint = ", with one of the server's API keys in API_KEY (`export API_KEY=...`)" if api_key is not None else ""
    page = f"\nOpen {playground} to watch a search, in a browser.\n" if playground is not None else ""
    return f"\nReady at {url} · models: {', '.join(names)}\n{page}\nTry{hint}:\n  {curl}\n"

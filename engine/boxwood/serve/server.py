"""`boxwood serve` as a process: an address to listen at, the app behind it, and its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from boxwood.errors import InputError, StorageError
from boxwood.serve.app import close, create_app, stop
from boxwood.serve.security import LOOPBACK

PORT = 8321
_SECONDS = 2.4  # for what is at work to end, once the server is told to
_WORKERS = ("AnyIO worker", "boxwood-")
"""How threads are called that may be at work."""
_Address = tuple[Any, ...]


def serve(
    database: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    names: Iterable[str] = (),
    read_only: bool = False,
    roots: Iterable[str | Path] = (),
    remote: bool = False,
    token: str | None = None,
    cache: str | Path | None = None,
    open_page: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a database's page until Ctrl-C, which is raised as KeyboardInterrupt. Work that nothing
    can stop, such as the decoding of a picture, then ends with the process, three seconds later at
    most: exit code 130.

    host, port: where to listen; port 0: any that is free.
    names: further names by which the page is asked for, such as that of a proxy in front of it.
    token: None: one is made up where others than this machine can reach the page.
    say: is given the lines that tell where the page is.

    Raises StorageError where the address is taken or the database cannot be opened.
    """
    listener = _listen(host, port)
    before = set(threading.enumerate())
    server: _Server | None = None
    try:
        address, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        if token is None and not local:
            token = secrets.token_urlsafe(24)
        hosts = {*LOOPBACK, host, address, *names} if local else {*_names(host, address), *names}
        app = create_app(
            database, read_only=read_only, roots=tuple(roots), remote=remote, token=token,
            hosts=tuple(sorted(hosts)), cache=cache,
        )  # fmt: skip

        def started() -> None:
            shown = _url(host if local else _reached_by(host, address), port, token)
            say(f"{Path(database).name} is served at {shown}")
            if not local:
                say("Whoever has this address sees the pictures, and can search, save and export.")
            say("Ctrl-C ends it.")
            if open_page:
                own = _url("127.0.0.1" if _unspecified(address) else host, port, token)
                threading.Thread(target=webbrowser.open, args=[own], daemon=True).start()
            warming.start()

        # Waited for at the end: a process that ends in the midst of loading libraries may crash.
        warming = threading.Thread(target=app.state.library.warm, name="boxwood-warm", daemon=True)
        logging.basicConfig(stream=sys.stderr, format="boxwood: %(message)s")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, log_config=None, lifespan="on",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=1, ws="none",
        )  # fmt: skip
        server = _Server(config, app, started)
        server.run(sockets=[listener])
        if not server.started:
            raise StorageError("the server could not start; the lines above say why")
    finally:
        listener.close()
        if server is not None:
            server.finish({
                thread for thread in threading.enumerate()
                if thread not in before and thread.name.startswith(_WORKERS)
            })  # fmt: skip


class _Server(uvicorn.Server):
    """Says when it listens, and sees to it that it ends when it is told to."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, then: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._then = then
        self._signal, self._since = 0, 0.0  # the first one, and when it came
        self._told = threading.Event()
        self._finished = threading.Event()
        threading.Thread(target=self._deadline, daemon=True).start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            await asyncio.to_thread(self._then)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self._since:
            self._signal, self._since = sig, time.monotonic()
            self._told.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Of requests that are cut off, uvicorn would log where.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        stop(self._app)
        await super().shutdown(sockets)

    def finish(self, threads: Iterable[threading.Thread]) -> None:
        """Close everything, and wait for the threads that were at work. Those that do not end have
        the deadline end the process; Python itself would wait for them."""
        main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # it ends anyhow
        close(self._app)
        end = (self._since or time.monotonic()) + _SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self._since and any(thread.is_alive() for thread in threads):
            return
        gc.collect()  # cursors in the frames of errors: DuckDB complains of those at Python's end
        self._finished.set()
        self._told.set()
        if main:
            signal.signal(signal.SIGINT, handler)

    def _deadline(self) -> None:
        self._told.wait()
        if self._finished.wait(_SECONDS + 0.4):  # in which the caller says good-bye
            return
        closing = threading.Thread(target=close, args=[self._app], daemon=True)
        closing.start()
        closing.join(0.5)
        os._exit(128 + self._signal)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"there is no address {host!r} on this machine: name one of its own with --host, such "
            "as 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    family, _, _, _, address = found[0]
    try:
        return _bound(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = _free_port(family, address)
            advice = f": try --port {other}" if other else ""
            raise StorageError(f"port {port} of {host} is in use{advice}") from error
        if error.errno == errno.EACCES:
            raise StorageError(
                f"port {port} may only be used by the system: try --port {PORT}"
            ) from error
        raise StorageError(
            f"cannot listen at {host}: {error.strerror}; name an address of this machine with "
            "--host"
        ) from error


def _bound(family: int, address: _Address) -> socket.socket:
    # With the protocol named, asyncio turns TCP_NODELAY on: else every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Where that lets a port be taken from somebody else, it is not set.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)  # or another server could bind the port as well
        return listener
    except BaseException:
        listener.close()
        raise


def _free_port(family: int, address: _Address) -> int | None:
    """The first of the next ports that is free."""
    for port in range(int(address[1]) + 1, min(int(address[1]) + 100, 65536)):
        try:
            _bound(family, (address[0], port, *address[2:])).close()
        except OSError:
            continue
        return port
    return None


def _unspecified(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_unspecified


def _names(host: str, address: str) -> set[str]:
    """What others may call this machine by."""
    own = socket.gethostname()
    names = {host, address, own, socket.getfqdn(), own.partition(".")[0]}
    names.add(own.partition(".")[0] + ".local")  # as neighbours find it by mDNS
    return {name for name in names if name} | (set(LOOPBACK) if _unspecified(address) else set())


def _reached_by(host: str, address: str) -> str:
    return socket.gethostname() if _unspecified(address) else host


def _url(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token is not None else "")

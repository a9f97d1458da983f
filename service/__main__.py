"""python -m service: serve the current release until told to stop, and the verbs of whoever looks after that."""

import os

# Before NumPy and FAISS load: their BLAS workers would spin while the encoder runs (70 -> 50 ms an ingest).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import errno
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from index.errors import DebutError
from service import check, logs
from service.app import create_app
from service.bulk import command as bulk
from service.http.connection import Connection
from service.http.keys import SCOPES, new_key
from service.serving.folding import fold_ledger
from service.settings import Settings, SettingsError, load_settings

CANNOT_START = 2


def main() -> int:
    """Do what the arguments say; return the exit code: 0 when done, 2 (a sentence on stderr) if it cannot be.

    `check` and `ingest` return 1 when what they looked at, or sent, is not all well.
    """
    arguments = _arguments().parse_args()
    _on_signals(_leave)
    _on_hangup(_nothing)
    try:
        if arguments.verb == "key":  # before the settings: they may be waiting for a key
            _make_key(arguments.name, arguments.scope)
            return 0
        if arguments.verb == "ingest":
            return bulk.run(arguments)
        if arguments.verb == "check":
            return check.run()
        settings = load_settings()
        logs.configure(settings.log_level)
        if arguments.verb == "fold":
            _fold(settings)
        else:
            with _bound(settings) as listener:
                app = create_app(settings)
                _serve(app, settings, listener)
    except (DebutError, OSError) as error:
        sys.stderr.write(f"debut: {error.detail if isinstance(error, DebutError) else error}\n")
        return CANNOT_START
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m service", description="Settings are variables: docs/settings.md.")
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("serve", help="serve the current release (what is done without a verb)")
    verbs.add_parser("fold", help="publish the current release with the ledger's tracks folded in; a service may run")
    key = verbs.add_parser("key", help="make an API key, shown this once, and its line for DEBUT_KEYS_FILE")
    key.add_argument("name", help="whose it is: the log names it")
    key.add_argument("--scope", choices=SCOPES, required=True, help="what it is good for")
    verbs.add_parser("check", help="look whether the service can start here, and will last")
    bulk.add_arguments(verbs.add_parser("ingest", help="send a folder of recordings, or a CSV file's, to a service"))
    return parser


def _make_key(name: str, scope: str) -> None:
    key, line = new_key(name, scope)
    _say(f"The key, shown this once: {key}\nThe line for the file that DEBUT_KEYS_FILE names: {line}")


def _fold(settings: Settings) -> None:
    os.nice(10)  # a service may be answering beside
    release, changes = fold_ledger(settings)
    if changes:
        _say(
            f"{release.id} is current now: {changes.added} tracks were added, {changes.replaced} replaced and "
            f"{changes.removed} removed"
        )
    else:
        _say(f"nothing to fold: release {release.id} holds all that the ledger says")


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def _bound(settings: Settings) -> socket.socket:
    """Take the port before the release is loaded, so that a busy one is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    return listener


def _cannot_listen(settings: Settings, error: OSError) -> SettingsError:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return SettingsError(f"{where} is in use by another program: stop it, or set DEBUT_PORT to another port.")
    return SettingsError(f"Cannot listen on {where} ({error.strerror}): check DEBUT_HOST and DEBUT_PORT.")


def _serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are finished first."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    _on_hangup(lambda *_: app.state.service.swapper.look_now())
    _on_signals(_nothing)  # uvicorn takes them over, and raises them once more when it has stopped
    try:
        listener.listen(config.backlog)
    except OSError as error:  # somebody else took the port while the release was being loaded
        app.state.service.close()
        raise _cannot_listen(settings, error) from None
    host, port = listener.getsockname()[:2]
    _say(f"Debut is ready at http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(config).run(sockets=[listener])


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _on_hangup(handler: Callable[[int, FrameType | None], None]) -> None:
    if not os.isatty(0):  # else the window was closed, and that ends what runs in it
        signal.signal(signal.SIGHUP, handler)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """While starting: stop at once; nothing is half-written."""
    raise SystemExit(0)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The signal needs no answer: uvicorn has dealt with it, or the current release is being opened anyway."""


if __name__ == "__main__":
    sys.exit(main())

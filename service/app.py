"""The wiring: settings -> release, ledger, pipeline -> routes."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI

from index.release.release import pointer
from service.http import openapi, problems
from service.http.idempotency import Answers
from service.http.keys import KeyRing
from service.http.limits import Queue
from service.http.requests import RequestScope
from service.http.security import Gate
from service.ingest.ingest import Ingest
from service.ingest.jobs import Jobs
from service.ledger.ledger import Ledger, LedgerError
from service.ledger.opening import open_ledger
from service.ledger.probe import Probe
from service.ledger.redis_streams import RedisLedger
from service.metrics import Metrics
from service.routes import audience, console, health, ingests, playlists, tracks
from service.serving.follow import Follower
from service.serving.serving import Current, Serving
from service.serving.swap import Swapper, trim
from service.settings import Settings

VERSION = version("debut")

log = structlog.get_logger("debut.app")

# FastAPI would otherwise speak to whatever OpenTelemetry provider it finds, and set one up from the
# environment.
_NO_TELEMETRY: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


class Service:
    """What the routes work with; `app.state.service`."""

    def __init__(self, settings: Settings) -> None:
        """Open release and ledger and bring the one to where the other says it is.

        Raises DebutError (ReleaseError, LedgerError, ...) when it cannot be served. A full disk is no reason.
        """
        self.settings = settings
        self.keys = KeyRing(settings.keys_file) if settings.keys_file else None
        self.metrics = Metrics()
        opened = pointer(settings.releases)  # before it is followed: what is published from here on is noticed
        serving = Serving.open(settings)
        self.ledger: Ledger = open_ledger(settings)
        try:
            _check(self.ledger)
            reached = serving.replay(self.ledger)
            trim(serving, self.ledger)
        except BaseException:
            self.ledger.close()
            raise
        self.probe = Probe(self.ledger)
        self.current = Current(serving, reached)
        self.ingest = Ingest(self.current, self.ledger, settings, self.metrics)
        self.jobs, self.answers = Jobs(self.metrics), Answers()
        self.swapper = Swapper(self.current, self.ledger, settings, self.metrics, opened)
        self.follower = Follower(self.current, self.ledger) if isinstance(self.ledger, RedisLedger) else None
        self.searches = ThreadPoolExecutor(settings.search_threads, thread_name_prefix="search")
        self.search_queue = Queue(settings.search_queue)
        self.metrics.watch(lambda: self.serving.collection.view(), lambda: len(self.ledger))
        self.metrics.build.labels(VERSION).set(1)

    @property
    def serving(self) -> Serving:
        """What is served now; a request asks once and answers from that alone."""
        return self.current.serving

    def start(self) -> None:
        """Begin to look for other releases, and for what other replicas do."""
        self.swapper.start()
        if self.follower:
            self.follower.start()

    def close(self) -> None:
        """Finish what is in hand and let go of threads and ledger."""
        self.swapper.stop()
        if self.follower:
            self.follower.stop()
        self.searches.shutdown()
        self.ingest.close()
        self.probe.close()
        self.ledger.close()


def _check(ledger: Ledger) -> None:
    """Refuse to start on a ledger that cannot be written; on one without room, what is known is still good to ask."""
    try:
        ledger.check()
    except LedgerError as error:
        if error.code != "ledger_full":
            raise
        log.warning("nothing can be taken in until there is room", reason=error.detail)


def create_app(settings: Settings) -> FastAPI:
    """Return the application: release open, ledger replayed. Raises DebutError when that cannot be done."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.jobs.close(settings.shutdown_s)
            service.close()

    app = FastAPI(
        title="Debut",
        version=VERSION,
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages run scripts from other people's machines
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.service = service
    for router in (tracks.router, ingests.router, playlists.router, audience.router, console.router, health.router):
        app.include_router(router)
    problems.install(app)
    openapi.install(app, settings)
    app.add_middleware(Gate, settings=settings, keys=service.keys)
    app.add_middleware(RequestScope, metrics=service.metrics)
    return app

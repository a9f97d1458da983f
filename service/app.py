"""The application: the service behind its routes, its gate and its errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from service.http import openapi, problems
from service.http.requests import RequestScope
from service.http.security import Gate
from service.routes import audience, console, health, ingests, playlists, tracks
from service.service import VERSION, Service
from service.settings import Settings

# FastAPI would otherwise speak to whatever OpenTelemetry provider it finds, and set one up from the
# environment.
_NO_TELEMETRY: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


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

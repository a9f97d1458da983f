"""What the routes work with: release, ledger and pipeline, opened, started and closed together."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import structlog

from index.release.release import pointer
from service.http.idempotency import Answers
from service.http.keys import KeyRing
from service.http.limits import Queue
from service.ingest.ingest import Ingest
from service.ingest.jobs import Jobs
from service.ledger.ledger import Ledger, LedgerError
from service.ledger.opening import open_ledger
from service.ledger.probe import Probe
from service.ledger.redis_streams import RedisLedger
from service.metrics import Metrics
from service.serving.follow import Follower
from service.serving.serving import Current, Serving
from service.serving.swap import Swapper, trim
from service.settings import Settings

VERSION = version("debut")

log = structlog.get_logger("debut.app")


class Service:
    """What the routes work with; `app.state.service`."""

    def __init__(self, settings: Settings) -> None:
        """Open release and ledger and bring the one to where the other says it is.

        Raises DebutError (ReleaseError, LedgerError, ...) when it cannot be served. A ledger that can be read and not
        written (a full disk, a Redis out of memory) is no reason.
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
    """Refuse to start on a ledger that cannot be written; on one that takes nothing in, what it has can be asked."""
    try:
        ledger.check()
    except LedgerError as error:
        if not error.readable:
            raise
        log.warning("nothing can be taken in until the ledger can be written", reason=error.detail)

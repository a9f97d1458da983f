"""The demo release: demo/data with its presets, and the songs it leaves out so that they can be uploaded."""

from pathlib import Path

from training.bcl.config import bcl_preset
from training.data.dataset import DataSet
from training.evaluate import Protocols, test_queries
from training.evaluation.audience import AudienceProtocol
from training.evaluation.continuation import ContinuationProtocol
from training.evaluation.matching import MatchingProtocol
from training.larp.presets import larp_preset
from training.pipeline import Pipeline
from training.progress import Progress
from training.workspace import Workspace

DATA = Path(__file__).parent.parent / "demo" / "data"
ATTRIBUTES = ("lyricist", "composer_born")

# Five test cycles are few: twenty draws of seeds a cycle, averaged, say more of each. The interval is over cycles.
PROTOCOLS = Protocols(
    continuation=ContinuationProtocol(cuts=(10, 20), repeats=20, tie_draws=5),
    matching=MatchingProtocol(cuts=(10, 20, 50)),
    audience=AudienceProtocol(cuts=(100,)),
)


def held_out(dataset: DataSet) -> list[int]:
    """Rows of the truth half of every test cycle in the paper's protocol: the songs to upload.

    The seed half goes into the release, cold: it was never trained on, in no playlist, heard by nobody.
    """
    queries = test_queries(dataset, ContinuationProtocol())
    return sorted({int(row) for query in queries for row in query.truth})


def run(work: Path, releases: Path, seed: int, progress: Progress) -> None:
    """Prepare, train, evaluate and publish the demo release."""
    pipeline = Pipeline(DataSet.open(DATA, attributes=ATTRIBUTES), Workspace(work), progress)
    pipeline.prepare()
    # Captions leave the album out, because it names the cycle.
    pipeline.train_larp(larp_preset("demo", seed=seed, clauses=("title", "artist")))
    pipeline.train_bcl(bcl_preset("demo", seed=seed))
    pipeline.evaluate(PROTOCOLS)
    pipeline.publish(releases, held_out(pipeline.dataset))

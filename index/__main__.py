"""python -m index {info, verify, search, seal, activate, prune, milvus}: look at releases, and look after them."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from index.collection import SPACES, Collection
from index.errors import DebutError
from index.release.checkup import checkup
from index.release.prune import prune
from index.release.release import Release, activate
from index.release.reseal import reseal
from index.search.milvus import Milvus
from index.search.segmentfile import Kind
from index.search.segments import SealedSegment
from index.tracks.catalogue import Filters

Row = Sequence[object]
Verb = Callable[[argparse.Namespace], bool]


class UsageError(DebutError):
    """A question that the release cannot answer."""

    code = "bad_question"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, or 1 where something is wrong: with the release, or with what was asked of it."""
    given = _parser().parse_args(arguments)
    verb: Verb = given.verb
    try:
        return 0 if verb(given) else 1
    except (DebutError, ValueError, OSError) as error:
        sys.stderr.write(f"debut: {error.detail if isinstance(error, DebutError) else error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m index", description="Look at a release, and reseal it.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb: Verb, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb.__name__.rstrip("_"), help=text, description=text)
        added.set_defaults(verb=verb)
        added.add_argument(
            "--releases", type=Path, default=Path("var/releases"), metavar="FOLDER",
            help="the folder of releases, whose current one is meant, or one release (default: %(default)s)",
        )  # fmt: skip
        return added

    add(info, "what a release holds, its kinds of index, and the memory they want")
    add(verify, "check every file, and the files against each other")
    _add_search(add(search, "the tracks nearest to a track"))
    sealing = add(seal, "publish the release once more with another kind of index")
    sealing.add_argument("kind", choices=get_args(Kind), help="exact, scan (exact too), hnsw or ivf")
    sealing.add_argument("--space", choices=SPACES, action="append", help="this space alone")
    sealing.add_argument("--threads", type=int, help="threads that build (default: all cores)")
    add(activate_, "make an earlier release the current one").add_argument("id", help="its id")
    pruning = add(prune_, "list the releases that are neither current nor among the newest others, and delete them")
    pruning.add_argument("--keep", type=int, required=True, metavar="N", help="how many besides the current one stay")
    pruning.add_argument("--yes", action="store_true", help="delete them")
    remote = add(milvus, "list the collections that other releases left in Milvus, and drop them")
    remote.add_argument("--uri", required=True, help="as DEBUT_MILVUS_URI")
    remote.add_argument("--token-file", type=Path, help="as DEBUT_MILVUS_TOKEN_FILE")
    remote.add_argument("--drop", action="store_true", help="drop them")
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("track", help="its track_id")
    parser.add_argument("--space", choices=SPACES, default=SPACES[0], help="(default: %(default)s)")
    parser.add_argument("-k", type=int, default=10, help="how many (default: %(default)s)")
    for name in ("language", "genre", "artist"):
        parser.add_argument(f"--{name}", action="append", default=[], help="let these pass; may be given again")
    parser.add_argument("--from", dest="since", metavar="DATE", help="released on or after YYYY[-MM[-DD]]")
    parser.add_argument("--to", dest="until", metavar="DATE", help="released on or before it")
    parser.add_argument("--explicit", action=argparse.BooleanOptionalAction, help="only explicit tracks, or none")
    parser.add_argument("--cold", action="store_true", help="only tracks without listening")


def info(given: argparse.Namespace) -> bool:
    """Print the manifest and what the files are; nothing is verified."""
    release = Release.open(given.releases, verify=False)
    manifest = release.manifest
    facts = [("release", release.id), ("created", manifest.created), ("encoder", manifest.encoder_id or "not stated")]
    facts += [("sealed from", str(manifest.facts["sealed_from"]))] if "sealed_from" in manifest.facts else []
    facts += [(name.replace("_", " "), f"{count:,}") for name, count in manifest.counts.items()]
    _table((), facts)
    spaces = [(name, release.file(f"{name}.faiss")) for name in SPACES]
    _table(("space", "kind", "vectors", "dims", "file", "memory"), [_space(name, path) for name, path in spaces])
    sizes: dict[str, list[int]] = {}
    for name, entry in manifest.files.items():
        folder, slash, _ = name.partition("/")
        sizes.setdefault(folder + slash, []).append(entry.bytes)
    whole = [size for each in sizes.values() for size in each]
    rows = [(name, len(each), _size(sum(each))) for name, each in [*sorted(sizes.items()), ("all", whole)]]
    _table(("files", "number", "size"), rows)
    return True


def _space(name: str, path: Path) -> Row:
    segment = SealedSegment(path)
    size, vectors = path.stat().st_size, segment.stored.nbytes
    # What a search without filters may read: the vectors themselves only where they are the index.
    hot = size if segment.kind in ("exact", "hnsw") else size - vectors
    return name, segment.kind, f"{int(segment.present.sum()):,}", segment.dims, _size(size), _size(hot)


def verify(given: argparse.Namespace) -> bool:
    """Print what each check found; return whether all was well."""
    release = Release.open(given.releases, verify=False)
    bad = 0
    for finding in checkup(release):
        bad += not finding.good
        _say(f"{'ok ' if finding.good else 'BAD'}  {finding.name}: {finding.text}")
    _say(f"{release.id}: {f'{bad} checks failed, copy or publish the release again' if bad else 'all is well'}")
    return not bad


def search(given: argparse.Namespace) -> bool:
    """Print the nearest tracks that pass the filters, best first."""
    view = Collection.open(Release.open(given.releases, verify=False)).view()
    catalogue, space = view.catalogue, getattr(view, given.space)
    row = catalogue.row_of(given.track)
    if row is None:
        named = [catalogue.track(found) for found in catalogue.search(given.track, 5)]
        hint = ": is it " + ", ".join(f"{track.track_id} ({track.title})" for track in named) + "?" if named else "."
        raise UsageError(f"{given.track!r} is no track_id of this release{hint}")
    query = space.vectors([row])[0]
    if np.isnan(query).any():
        raise UsageError(f"{given.track!r} has no vector in the {given.space} space.")
    allowed = catalogue.mask(_filters(given))
    allowed[row] = False
    scores, rows = space.search(query, given.k, allowed)
    found: list[Row] = []
    for score, near in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
        if near >= 0:
            track, heard = catalogue.track(near), catalogue.interactions[near]
            found.append((f"{score:.4f}", heard, track.track_id, track.title, track.artist, track.release_date))
    _table(("score", "heard", "track_id", "title", "artist", "released"), found)
    return True


def _filters(given: argparse.Namespace) -> Filters:
    return Filters(
        explicit=given.explicit,
        languages=tuple(given.language),
        genres=tuple(given.genre),
        artists=tuple(given.artist),
        released_from=given.since,
        released_to=given.until,
        only_cold=given.cold,
    )


def seal(given: argparse.Namespace) -> bool:
    """Publish the release with other kinds of index, and say how to go back."""
    old = Release.open(given.releases)
    new = reseal(old, given.kind, given.space or SPACES, threads=given.threads)
    _say(f"{new.id} is current now, at {new.path}; a running service takes it up by itself.")
    _say(f"The way back: python -m index activate {old.id} --releases {old.path.parent}")
    return True


def activate_(given: argparse.Namespace) -> bool:
    """Verify a release and make it the current one."""
    _say(f"{activate(given.releases, given.id).id} is current now; a running service takes it up by itself.")
    return True


def prune_(given: argparse.Namespace) -> bool:
    """Delete old releases, or say which would go."""
    freed = 0
    for release_id, size, held in prune(given.releases, given.keep, delete=given.yes):
        if held:
            _say(f"{release_id} stays: a service is serving it, or it is being sealed anew.")
        else:
            freed += size
            _say(f"{release_id} {'is deleted' if given.yes else 'would be deleted'}: {_size(size)}")
    _say(f"{_size(freed)} {'freed' if given.yes else 'to be freed: --yes deletes'}")
    return True


def milvus(given: argparse.Namespace) -> bool:
    """Name the collections of releases that are not in the folder; a folder without any releases is a mistake."""
    Release.open(given.releases, verify=False)
    token = given.token_file.read_text(encoding="utf-8").strip() if given.token_file else ""
    kept = [path.parent.name for path in given.releases.glob("*/manifest.json")]
    for name in Milvus(given.uri, token).leftovers(kept, drop=given.drop):
        _say(f"{name} {'is dropped' if given.drop else 'is left over: --drop drops it'}")
    return True


def _table(head: Sequence[str], rows: Iterable[Row]) -> None:
    """Print columns as wide as they need; figures to the right."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*([head] if head else []), *cells, strict=True)]
    right = [all(row[n][:1].isdigit() or not row[n] for row in cells) and bool(head) for n in range(len(widths))]
    for row in [*([head] if head else []), *cells]:
        line = (f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(row, widths, right, strict=True))
        _say("  ".join(line).rstrip())
    _say("")


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:,.1f} {('KB', 'MB', 'GB', 'TB')[power - 1]}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main())

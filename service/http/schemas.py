"""What goes over the wire: requests (checked against these models) and answers (documented by them)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.http.values import Count, Finite, Ids, IsoDate, Isrc, Language, Lyrics, Text, Texts, TrackId


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TrackMetadata(_Request):
    """What the uploader says of a track. All is optional; what is left out is unknown, never guessed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "track_id": "label-0042",
                    "title": "First Light",
                    "artist": "Marta Ruiz",
                    "album": "Harbour",
                    "language": "en",
                    "genres": ["folk", "indie"],
                    "release_date": "2026-05-31",
                    "explicit": False,
                }
            ]
        },
    )

    track_id: TrackId | None = Field(
        default=None,
        description="Your id of the track; else it is `sha256-` and the SHA-256 of the uploaded bytes.",
    )
    title: Text | None = None
    artist: Text | None = None
    album: Text | None = None
    language: Language | None = Field(default=None, description="ISO 639 code.")
    genres: Texts = Field(default_factory=list)
    release_date: IsoDate | None = Field(default=None, description="YYYY-MM-DD, or as much as is known.")
    explicit: bool | None = None
    isrc: Isrc | None = None
    lyrics: Lyrics | None = None
    attributes: dict[Text, Text | Finite | Texts] = Field(
        default_factory=dict,
        description="Further fields that the release's matcher was trained with.",
        json_schema_extra={"additionalProperties": False},  # beside the pattern of their names
    )


class FilterRequest(_Request):
    """Which candidates may be returned: all conditions hold. A track whose value is unknown does not pass."""

    explicit: bool | None = Field(
        default=None,
        description="true: only tracks marked explicit; false: none of them (unmarked pass).",
    )
    languages: Annotated[list[Language], Field(fail_fast=True)] | None = None
    genres: Texts | None = Field(default=None, description="At least one of them.")
    artists: Texts | None = None
    released_from: IsoDate | None = Field(default=None, description="YYYY, YYYY-MM or YYYY-MM-DD.")
    released_to: IsoDate | None = Field(default=None, description="That year, month or day is still in.")
    only_cold: bool = Field(default=False, description="Only tracks that nobody has listened to yet.")


CAPS = ("max_per_artist", "max_per_album")

# Not `explicit`, `exclude` or `negatives`: those are never lifted.
Relaxable = Literal[
    "max_per_artist", "max_per_album", "languages", "genres", "artists", "released_from", "released_to", "only_cold"
]


Recommender = Literal["larp", "bcl", "audio", "text"]


class ContinueRequest(_Request):
    """A playlist to continue."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "seeds": ["label-0042", "label-0007"],
                    "k": 20,
                    "filters": {"only_cold": True},
                    "diversity": 0.2,
                    "max_per_artist": 2,
                    "explain": True,
                }
            ]
        },
    )

    seeds: Ids = Field(min_length=1, description="Ids of the playlist's tracks; order does not matter.")
    k: Count = Field(default=20, description="How many tracks to return at most.")
    recommender: Recommender = Field(
        default="larp",
        description="What counts as alike. `larp`: sound and words together, trained on playlists: what is heard in "
        "one with the seeds. `bcl`: the vectors that audiences are matched with, what is heard by the same people. "
        "`audio`, `text`: the sound, or the words, alone: for seeds whose captions say little, or for a mood that is "
        "in the words; each request reads these vectors of the whole catalogue, 0.1 s of a core for 200,000 tracks. "
        "Cold tracks have all that their sound and metadata give. `docs/evidence.md` has what was measured: larp at "
        "playlists, bcl at shared audiences.",
    )
    exclude: Ids = Field(default_factory=list, description="Ids that are not returned.")
    negatives: Ids = Field(
        default_factory=list,
        description="Ids to stay away from: half their mean vector is subtracted; not returned either.",
    )
    filters: FilterRequest = Field(default_factory=lambda: FilterRequest())
    diversity: Finite = Field(
        default=0.0,
        ge=0,
        le=1,
        description="0: by score alone; 1: as unlike each other as can be (maximal marginal relevance).",
    )
    max_per_artist: Count | None = None
    max_per_album: Count | None = None
    relax: list[Relaxable] = Field(
        default_factory=list,
        max_length=16,
        description="What may be lifted, in this order, one after the other, when fewer than k tracks are left; they "
        "come after those that keep everything. Without it the answer is shorter.",
    )
    explain: bool = Field(default=False, description="Say which seed brought each track, and how.")
    cursor: str | None = Field(
        default=None,
        description="The last answer's `cursor`: go on behind it. All else but k and explain must be as it was.",
    )


class Because(BaseModel):
    """Why a track was recommended.

    `similarity` (of the closest seed and the track) = `audio` + `text` + `cross`: what their sounds share,
    what their captions share, and what the sound of one shares with the caption of the other. These three are null
    where the recommender is `bcl`, whose vectors are not made of such parts.
    """

    seed: str
    similarity: float
    audio: float | None
    text: float | None
    cross: float | None


class Recommended(BaseModel):
    """One track of an answer."""

    track_id: str
    title: str | None
    artist: str | None
    album: str | None
    score: float = Field(
        description="Mean inner product with the seeds' unit vectors (LARP, equation 12), of the recommender's kind."
    )
    cold: bool = Field(description="Nobody has listened to it yet.")
    because: Because | None = Field(default=None, description="Only when `explain` was asked for.")


class ContinueResponse(BaseModel):
    """The continuation of a playlist, best first."""

    tracks: list[Recommended]
    unknown_seeds: list[str] = Field(
        description="Seeds (and negatives) that are no track here, or have no vector of the recommender's kind."
    )
    relaxed: list[str] = Field(description="Constraints of `relax` that had to give, in that order.")
    release: str
    cursor: str | None = Field(
        description="Send it with the same request for what comes next; no track is returned twice, whatever is taken "
        "in or down meanwhile. null at the end. It belongs to `release`: with another it is a 409."
    )


class TrackDocument(BaseModel):
    """A track as the catalogue knows it."""

    track_id: str
    title: str | None
    artist: str | None
    album: str | None
    duration_s: float | None
    release_date: str | None
    explicit: bool | None
    language: str | None
    genres: list[str]
    isrc: str | None
    attributes: dict[str, Any]
    cold: bool


class NearDuplicate(BaseModel):
    """A track that was here already and sounds the same, or nearly."""

    track_id: str
    similarity: float = Field(
        description="Cosine of the two tracks' sketches: how each band of the sound comes and goes over the seconds of "
        "the windows, whatever its level. Copies have .97 and more, other songs less."
    )


class Quality(BaseModel):
    """What the upload turned out to be."""

    duration_s: float
    windows: int = Field(description="How many windows of 10 s the track's vector is the mean of.")
    container: str
    codec: str
    sample_rate: int
    silence: float = Field(description="Part of those windows, 0 to 1, in which there is nothing to hear.")
    peak_dbfs: float = Field(
        description="The largest sample of any channel in those windows, in dB; 0 is full scale, and what lossy "
        "formats and floats decode to may be above it."
    )
    clipped: float = Field(
        description="Part of the samples, 0 to 1, that are cut off: three or more in a row (above 48 kHz: as long) at "
        "full scale or beyond, in any channel. 0 for what is just loud."
    )
    near_duplicate: NearDuplicate | None = Field(
        description="The track that sounds most like this one, if it may be the same recording; it was taken in anyway."
    )


class IngestResponse(BaseModel):
    """A track that can be recommended from now on, and will be after any crash or restart."""

    track: TrackDocument
    cold: bool
    outcome: str = Field(description="`created`, `replaced`, or `unchanged` (the same content and metadata again).")
    release: str
    content_sha256: str
    quality: Quality | None = Field(description="null when `outcome` is `unchanged`.")
    timings_ms: dict[str, float] = Field(description="By stage: receive, decode, features, encode, ledger, index.")
    freshness_ms: float = Field(description="From the first byte of the upload until it could be recommended.")


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    setting: str | None = Field(default=None, description="The setting that moves the limit that was hit.")
    errors: list[dict[str, str]] | None = Field(default=None, description="What is wrong, field by field.")


class IngestStatus(BaseModel):
    """Where an ingest is that was answered with 202."""

    id: str
    state: str = Field(description="`queued`, `running`, `done` or `failed`.")
    stage: str | None = Field(description="While it runs: decode, features, encode, ledger or index.")
    track_id: str
    created: str = Field(description="ISO 8601, UTC; so is `ended`.")
    ended: str | None
    result: IngestResponse | None = Field(description="Once it is `done`: what a 201 (or 200) would have said.")
    problem: ProblemDocument | None = Field(description="Once it has `failed`: why.")


class SearchResponse(BaseModel):
    """Tracks whose title or artist match, best first."""

    tracks: list[TrackDocument]
    release: str


class Removal(BaseModel):
    """A receipt: from what the track was removed."""

    track_id: str
    removed_from: list[str]
    was_in_release: bool = Field(description="It came with the release: the ledger keeps it out from now on.")
    purged_by_next_fold: list[str] = Field(
        description="What is in files still, in no answer, until the ledger is folded into a new release."
    )
    release: str


class ClusterDocument(BaseModel):
    """One taste among the listeners of similar tracks."""

    mass: float = Field(description="Part of those listeners' weight that has this taste.")
    share: float = Field(description="Part of the audience that is filled from here.")
    size: int = Field(description="Listeners the cluster was made of.")
    tracks: list[str] = Field(description="Ids of the similar tracks nearest to its middle.")
    listeners: list[str] = Field(description="Ids of its listeners nearest to its middle.")


class ListenerDocument(BaseModel):
    """One listener to show the track to."""

    listener_id: str
    score: float = Field(
        description="How near by content and by what the similar tracks' audience hears; 1: the track's own vector, "
        "and listening as that audience does."
    )
    cluster: int = Field(description="Place of the nearest cluster in `clusters`.")


class OverlapDocument(BaseModel):
    """Listeners between two clusters, nearly as near to one as to the other."""

    clusters: list[int] = Field(description="Places of the two in `clusters`.")
    share: float = Field(description="Part of the weight of the listeners of similar tracks.")


class NeighbourDocument(BaseModel):
    """A track with listeners that is near the track asked for."""

    track_id: str
    similarity: float


class AudienceResponse(BaseModel):
    """Whom to show a track to (CAT)."""

    track_id: str
    clusters: list[ClusterDocument]
    listeners: list[ListenerDocument]
    reach: int = Field(description="Listeners who score at least `min_score`, named or not; without one, all.")
    overlaps: list[OverlapDocument] = Field(description="Every two clusters that somebody is between.")
    neighbours: list[NeighbourDocument]
    release: str

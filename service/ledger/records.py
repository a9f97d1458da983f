"""How the ledger writes tracks, vectors and features as bytes: JSON, little-endian float32, packed uint8."""

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from index.tracks.track import Track

_FIELDS = {field.name for field in dataclasses.fields(Track)}


def pack_track(track: Track) -> str:
    """Return the track as JSON with sorted keys; unknown (None or empty) fields are left out."""
    fields = {name: getattr(track, name) for name in sorted(_FIELDS)}
    fields["attributes"] = dict(track.attributes)
    known = {name: value for name, value in fields.items() if value is not None and value not in ((), {})}
    return orjson.dumps(known, option=orjson.OPT_SORT_KEYS).decode()


def unpack_track(text: str) -> Track:
    """Return the track that `pack_track` wrote. Raises ValueError for anything else."""
    fields: dict[str, Any] = orjson.loads(text)
    if not isinstance(fields, dict) or not {"track_id"} <= fields.keys() <= _FIELDS:
        raise ValueError("not the metadata of a track")
    fields["genres"] = tuple(fields.get("genres", ()))
    return Track(**fields)


def pack_vector(vector: NDArray[np.float32] | None) -> bytes | None:
    """Return a vector f32 [d] as 4 d little-endian bytes; None stays None."""
    return None if vector is None else vector.astype("<f4").tobytes()


def unpack_vector(data: bytes | None) -> NDArray[np.float32] | None:
    """Return the vector f32 [d] that `pack_vector` wrote."""
    return None if data is None else np.frombuffer(data, "<f4").astype(np.float32)


@dataclass(frozen=True, slots=True)
class PackedFeatures:
    """A track's quantised features uint8 [clips, frames, mels], deflated; `shape` is theirs.

    Kept packed until an encoder wants them: a start that embeds nothing anew does not unpack anything.
    """

    data: bytes
    shape: tuple[int, int, int]

    @classmethod
    def pack(cls, log_mel: NDArray[np.uint8]) -> Self:
        """Pack differences along time.

        Neighbouring frames are alike, so their differences deflate to about 60 % (the values themselves only
        to 80 %), in about a millisecond a clip.
        """
        clips, frames, mels = log_mel.shape
        differences = np.diff(log_mel, axis=1, prepend=np.uint8(0))
        return cls(zlib.compress(differences.tobytes(), level=1), (clips, frames, mels))

    def unpack(self) -> NDArray[np.uint8]:
        """Return the features. Raises ValueError when the data is damaged (zlib keeps a checksum)."""
        try:
            raw = zlib.decompress(self.data)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        return np.cumsum(np.frombuffer(raw, np.uint8).reshape(self.shape), axis=1, dtype=np.uint8)

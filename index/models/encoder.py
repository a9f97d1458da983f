"""Log-mel, captions and lyrics -> unit vectors, by the exported towers of LARP."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from index.errors import DebutError
from index.models.caption import CLAUSES, KINDS, caption, fields, split_fields
from index.models.onnxmodel import ModelError, OnnxModel
from index.sound.features import FRAMES, MELS, SAMPLE_RATE
from index.sound.sketch import sketch
from index.tracks.track import Track

FORMAT = 1
FILES = {"audio": ("audio.onnx",), "text": ("text.onnx", "tokenizer.json")}
"""What each tower consists of; config.json stands beside them."""
_TEXTS = 32  # encoded at once: bounds memory, and what padding to the longest wastes


class EncoderError(DebutError):
    """A track with nothing to encode."""

    code = "nothing_to_encode"


@dataclass(frozen=True, slots=True, eq=False)
class TrackVectors:
    """The unit vectors f32 [dims] of one track; None where the track has no such part."""

    audio: NDArray[np.float32] | None
    text: NDArray[np.float32] | None
    lyrics: NDArray[np.float32] | None
    continuation: NDArray[np.float32]
    sketch: NDArray[np.float32] | None
    """f32 [160]: no tower's, what copies of a recording are found by (`index.sound.sketch`)."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """encoder/config.json: what the towers expect."""

    dims: int
    max_tokens: int
    pad_token_id: int
    pad_token: str
    clauses: tuple[str, ...]
    audio_share: float
    towers: tuple[str, ...]
    """Of "audio" and "text" those that were trained: one at least."""
    caption: str = "sentence"
    """How the text tower reads a track: "sentence", one text; "fields", each clause as a text of its own."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ModelError when the file is missing, damaged or made for another front end."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["sample_rate"] != SAMPLE_RATE:
                raise ModelError(
                    f"{path} has format {data['format']} and {data['sample_rate']} Hz; this Debut reads "
                    f"{FORMAT} and {SAMPLE_RATE}: upgrade it, or publish the release again"
                )
            clauses = tuple(data["clauses"])
            if not set(clauses) <= set(CLAUSES):
                raise ModelError(f"{path} names unknown caption clauses {clauses}; known are {CLAUSES}")
            share = float(data["audio_share"])
            if not 0 <= share <= 1:
                raise ModelError(f"{path} has an audio_share of {share}, outside [0, 1]; publish the release again")
            towers = tuple(data.get("towers", FILES))
            if not towers or not set(towers) <= set(FILES):
                raise ModelError(f"{path} names towers {towers}; known are {tuple(FILES)}; publish the release again")
            kind = data.get("caption", "sentence")
            if kind not in KINDS:
                raise ModelError(f"{path} has captions of kind {kind!r}; this Debut knows {KINDS}: upgrade it")
            padding = (data["pad_token_id"], data["pad_token"])
            return cls(data["dims"], data["max_tokens"], *padding, clauses, share, towers, kind)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} cannot be read ({error!r}); publish the release again") from error


class Encoder:
    """The audio and the text tower, or the one of them that was trained. Safe to use from many threads."""

    def __init__(self, directory: Path, threads: int | None) -> None:
        self.config = EncoderConfig.read(directory / "config.json")
        self.id = encoder_id(directory)
        self._models = {name: OnnxModel(directory / f"{name}.onnx", threads) for name in self.config.towers}
        self._tokenizer = _tokenizer(directory / "tokenizer.json", self.config) if self.reads else None
        dims = {model.dims for model in self._models.values()}
        if dims != {self.config.dims}:
            raise ModelError(
                f"{directory}: the towers give {' and '.join(map(str, sorted(dims)))} dims, config.json says "
                f"{self.config.dims}; publish the release again"
            )

    @classmethod
    def open(cls, directory: Path, threads: int | None = None) -> Self:
        """Load the encoder/ folder of a release; `threads` a tower, None for all CPUs. Raises ModelError."""
        return cls(directory, threads)

    @property
    def dims(self) -> int:
        """Width of the vectors: 256."""
        return self.config.dims

    @property
    def hears(self) -> bool:
        """Whether there is an audio tower; without one, clips are passed over."""
        return "audio" in self._models

    @property
    def reads(self) -> bool:
        """Whether there is a text tower; without one, captions and lyrics are passed over."""
        return "text" in self._models

    @property
    def clauses(self) -> tuple[str, ...]:
        """What goes into captions: some of "title", "artist", "album"."""
        return self.config.clauses

    def caption(self, track: Track) -> str:
        """What the text tower reads of a track; "" when it has none of the clauses, or there is no text tower."""
        if not self.reads:
            return ""
        made = fields if self.config.caption == "fields" else caption
        return made(track, self.clauses)

    def audio(self, log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode clips: log-mel f32 [n, 1001, 64] (`features.log_mel`) -> unit vectors f32 [n, dims]."""
        if log_mel.ndim != 3 or log_mel.shape[1:] != (FRAMES, MELS):
            raise ValueError(f"log_mel must be [n, {FRAMES}, {MELS}], not {list(log_mel.shape)}")
        vectors = np.empty((len(log_mel), self.dims), dtype=np.float32)
        for row, clip in enumerate(log_mel):  # a batch gains nothing on a CPU, and the export is static
            vectors[row] = self._models["audio"].run({"log_mel": np.ascontiguousarray(clip, np.float32)[None, None]})[0]
        return vectors

    def text(self, texts: list[str]) -> NDArray[np.float32]:
        """Encode n captions of this encoder's kind -> unit vectors f32 [n, dims]. Each text of them (each field, where
        it reads fields) is cut to `max_tokens` word pieces.
        """
        vectors = np.empty((len(texts), self.dims), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS):
            vectors[start : start + _TEXTS] = self._models["text"].run(self._pieces(texts[start : start + _TEXTS]))
        return vectors

    def _pieces(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        """Word pieces and their mask, i64 [n, longest], or [n, fields, longest]."""
        assert self._tokenizer is not None
        shape: tuple[int, ...] = (len(texts), -1)
        if self.config.caption == "fields":
            shape = (len(texts), len(self.clauses), -1)
            texts = split_fields(texts, len(self.clauses))
        encodings = self._tokenizer.encode_batch(texts)
        nothing = [self.config.pad_token_id]  # without special tokens texts may have no piece at all
        return {
            "input_ids": np.array([encoding.ids or nothing for encoding in encodings], np.int64).reshape(shape),
            "attention_mask": np.array([encoding.attention_mask or [0] for encoding in encodings], np.int64).reshape(
                shape
            ),
        }

    def track(self, log_mel: NDArray[np.float32] | None, caption: str, lyrics: str | None) -> TrackVectors:
        """Encode what there is of a track: its clips f32 [n, 1001, 64], its caption by `self.caption` ("" when none),
        its lyrics.

        audio = l2(mean over clips); continuation = l2(w audio + (1 - w) text), w the trained `audio_share` (LARP,
        Eq. 11, where w is 0.5), or the one that is there. The sketch needs no tower. A text without a single word
        piece, such as a zero-width space, has no vector where fields are read.
        Raises EncoderError when there is neither audio nor a caption that a tower could encode.
        """
        if not self.reads:
            caption, lyrics = "", None
        lyrics = " ".join(lyrics.split()) if lyrics else None  # a line break would begin another field
        clips = log_mel if log_mel is not None and len(log_mel) else None
        audio = l2(self.audio(clips).mean(axis=0)) if self.hears and clips is not None else None
        texts = [text for text in (caption, lyrics) if text and text.strip()]
        vectors = iter(self.text(texts) if texts else ())
        text = _if_any(next(vectors)) if caption.strip() else None
        words = _if_any(next(vectors)) if lyrics else None
        if audio is None and not self.reads:
            raise EncoderError("the track has no audio, and this model reads no text")
        if text is None and not self.hears:
            raise EncoderError("the track has no title, artist or album, and this model hears no audio")
        drawn = sketch(clips) if clips is not None else None
        return TrackVectors(audio, text, words, continuation(audio, text, self.config.audio_share), drawn)


def continuation(
    audio: NDArray[np.float32] | None, text: NDArray[np.float32] | None, audio_share: float = 0.5
) -> NDArray[np.float32]:
    """l2(w audio + (1 - w) text), or the one that is there. LARP's Eq. 11 is w = 0.5. EncoderError when neither is."""
    if audio is None or text is None:
        only = text if audio is None else audio
        if only is None:
            raise EncoderError("the track has neither audio nor a title, artist or album; give at least one")
        return only
    return l2(audio_share * audio + (1 - audio_share) * text)


def l2(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at length 1 (one that is zero stays zero)."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32, copy=False)


def _if_any(vector: NDArray[np.float32]) -> NDArray[np.float32] | None:
    return vector if vector.any() else None


def encoder_id(directory: Path) -> str:
    """SHA-256 over names and contents of the encoder's files: vectors with the same id are comparable.

    Raises ModelError when one is missing.
    """
    towers = EncoderConfig.read(directory / "config.json").towers
    digest = hashlib.sha256()
    for name in sorted(["config.json", *(name for tower in towers for name in FILES[tower])]):
        try:
            with (directory / name).open("rb") as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ModelError(f"{directory} lacks {name}; publish the release again") from error
    return digest.hexdigest()


def _tokenizer(path: Path, config: EncoderConfig) -> Any:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.enable_truncation(config.max_tokens)
        tokenizer.enable_padding(pad_id=config.pad_token_id, pad_token=config.pad_token)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path} is no tokenizer for config.json ({error}); publish the release again") from error
    return tokenizer

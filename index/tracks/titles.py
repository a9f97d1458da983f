"""Search by title and artist: folded text, every query word the beginning of some word."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_NOT_WORD = re.compile(r"[\W_]+")
_APOSTROPHE = re.compile("['’ʼ]")
_MARK = re.compile("[\u0300-\u036f]+")
"""The accents of Latin, Greek and Cyrillic; those of other scripts go the longer way."""
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
"""Kana and Han, written without spaces: each sign counts as a word."""


def fold(text: str | None) -> str:
    """Return the words of `text` without case, accents and punctuation, separated by single spaces.

    >>> fold("Träumerei, Op. 15 (Don't!)")
    'traumerei op 15 dont'
    """
    if not text:
        return ""
    if not text.isascii():
        text = _MARK.sub("", unicodedata.normalize("NFKD", text))
        if not text.isascii():
            bare = "".join(sign for sign in text if not unicodedata.combining(sign))
            text = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", bare)).casefold()
    return _NOT_WORD.sub(" ", _APOSTROPHE.sub("", text.lower())).strip()


def line(title: str | None, artist: str | None) -> str:
    """Return what is searched of a track: its words, a space before each, title and artist apart by a tab."""
    return f" {fold(title)}\t {fold(artist)}"


class Titles:
    """The searchable text of many tracks in row order, as one string: scanned by the regex engine."""

    def __init__(self, text: str, lengths: NDArray[np.int64]) -> None:
        """Take lines, each ended by a line feed, and how many characters each has with it, i64 [n]."""
        self._text = f"\n{text}"
        self._starts: Rows = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))

    @classmethod
    def of(cls, listed: Sequence[str]) -> "Titles":
        """Take the lines themselves."""
        lengths = np.fromiter((len(text) + 1 for text in listed), np.int64, count=len(listed))
        return cls("".join(f"{text}\n" for text in listed), lengths)

    def search(self, query: str) -> tuple[Rows, NDArray[np.int8]]:
        """Return the rows i64 [n], ascending, in which each word of a folded `query` begins a word, and their
        tiers.

        Tiers: 0 the title is the query, 1 the artist is, 2 the title begins with it, 3 all others.
        """
        words = sorted(query.split(), key=len)
        rows = self._having(f" {words.pop()}")
        if words:
            beginnings = [f" {word}" for word in words]
            keep = [all(word in text for word in beginnings) for text in map(self._line, rows.tolist())]
            rows = rows[np.array(keep, dtype=bool)]
        tiers = np.full(len(rows), 3, dtype=np.int8)
        for tier, text in ((2, f"\n {query}"), (1, f"\t {query}\n"), (0, f"\n {query}\t")):
            tiers[np.isin(rows, self._having(text))] = tier
        return rows, tiers

    def _having(self, text: str) -> Rows:
        hits = re.finditer(re.escape(text), self._text)
        places = np.fromiter((hit.start() for hit in hits), np.int64)
        return np.unique(np.searchsorted(self._starts, places, side="right") - 1)

    def _line(self, row: int) -> str:
        return self._text[self._starts[row] : self._starts[row + 1]]

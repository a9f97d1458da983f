"""Invented words: a vocabulary for each value of each factor, and names for artists and albums."""

import numpy as np
from numpy.typing import NDArray

ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gl", "kr", "sh", "st")
VOWELS = ("a", "e", "i", "o", "u", "ai", "au")
CODAS = ("", "l", "m", "n", "r", "s", "t", "x")
WORDS_A_VALUE = 4
NOISE_WORDS = 60
MOST_NOISE = 2  # words a title


def invent(count: int, rng: np.random.Generator) -> list[str]:
    """`count` different words of two syllables (three when two do not suffice), each pronounceable."""
    words: dict[str, None] = {}
    syllables = 2
    while len(words) < count:
        before = len(words)
        words.update(dict.fromkeys(_draw(count, syllables, rng)))
        syllables += len(words) - before < count // 4
    return list(words)[:count]


def _draw(count: int, syllables: int, rng: np.random.Generator) -> list[str]:
    parts = [rng.choice(np.array(letters), (count, syllables)) for letters in (ONSETS, VOWELS, CODAS)]
    return ["".join("".join(letters) for letters in zip(*rows, strict=True)) for rows in zip(*parts, strict=True)]


def titles(values: NDArray[np.int64], choices: int, rng: np.random.Generator) -> list[str]:
    """Titles of tracks with `values` i64 [N, F] of `choices` each: a word for each factor's value among up to two
    that mean nothing, in random order.

    Each value of each factor has `WORDS_A_VALUE` words of its own, drawn evenly.
    """
    count, factors = values.shape
    vocabulary = np.array(invent(factors * choices * WORDS_A_VALUE + NOISE_WORDS, rng))
    telling = vocabulary[NOISE_WORDS:].reshape(factors, choices, WORDS_A_VALUE)
    chosen = telling[np.arange(factors), values, rng.integers(WORDS_A_VALUE, size=values.shape)]
    noise = vocabulary[rng.integers(NOISE_WORDS, size=(count, MOST_NOISE))]
    least = 0 if factors else 1  # a track has a title even where no factor is written
    quantity = rng.integers(least, MOST_NOISE + 1, count)
    rows = [[*words, *noise[k, : quantity[k]]] for k, words in enumerate(chosen)]
    return [" ".join(rng.permutation(words)).capitalize() for words in rows]


def names(artists: int, albums: int, rng: np.random.Generator) -> tuple[list[str], list[list[str]]]:
    """A name for each artist, no two alike, and `albums` album names of each, which mean nothing."""
    first = [word.capitalize() for word in invent(40, rng)]
    last = [word.capitalize() for word in invent(artists, rng)]
    noise = np.array(invent(NOISE_WORDS, rng))
    called = [f"{first[k]} {name}" for k, name in zip(rng.integers(len(first), size=artists), last, strict=True)]
    pairs = noise[rng.integers(NOISE_WORDS, size=(artists, albums, 2))]
    return called, [[" ".join(words).capitalize() for words in of_artist] for of_artist in pairs]

"""BCL's fields: fitted on training tracks, the same arrays for trainer and service, nothing invented for
what is missing.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.models.fields import MULTI_SLOTS, FieldsError, FieldSet, FieldSpec
from index.tracks.track import Track

SPECS = (
    FieldSpec("artist", "categorical", "artist"),
    FieldSpec("explicit", "categorical", "explicit"),
    FieldSpec("genres", "multi", "genres"),
    FieldSpec("born", "numeric", "composer_born"),
    FieldSpec("year", "numeric", "release_date"),
    FieldSpec("audio", "dense", "audio"),
    FieldSpec("text", "dense", "text"),
)


def rows(count: int, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def vectors(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"audio": rows(count, 64, seed), "text": rows(count, 96, seed + 1)}


TRACKS = (
    Track("a", artist="Schubert", explicit=False, genres=("Lied", "Romantic"), release_date="1827-01-01",
          attributes={"composer_born": 1797.0}),
    Track("b", artist="schubert ", explicit=None, genres=("lied",), attributes={"composer_born": 1797.0}),
    Track("c", artist="Fanny  Hensel", explicit=True, genres=(), release_date="1846-07-02",
          attributes={"composer_born": 1805.0}),
    Track("d", attributes={}),
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> FieldSet:
    return FieldSet.fit(SPECS, TRACKS, vectors(4))


class TestTransform:
    def test_categories_are_numbered_by_frequency_and_folded(self, fitted):
        arrays = fitted.transform(TRACKS, vectors(4))
        assert arrays["categorical"].dtype == np.int64
        assert arrays["categorical"].tolist() == [[1, 1], [1, 0], [2, 2], [0, 0]]
        assert fitted.sizes("categorical") == (3, 3)

    def test_values_unseen_in_fitting_are_unknown(self, fitted):
        stranger = Track("x", artist="Someone New", genres=("jazz",))
        arrays = fitted.transform([stranger], vectors(1))
        assert arrays["categorical"].tolist() == [[0, 0]]
        assert not arrays["multi"].any()

    def test_values_of_a_multi_field_come_most_frequent_first(self, fitted):
        arrays = fitted.transform(TRACKS, vectors(4))
        assert arrays["multi"].shape == (4, 1, MULTI_SLOTS)
        assert arrays["multi"][:, 0, :3].tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]

    def test_a_multi_field_keeps_its_eight_most_frequent(self):
        spec = [FieldSpec("genres", "multi", "genres")]
        names = [f"g{number:02}" for number in range(20)]
        tracks = [Track(str(n), genres=tuple(names[: 20 - n])) for n in range(20)]
        arrays = FieldSet.fit(spec, tracks, {}).transform([Track("x", genres=tuple(reversed(names)))], {})
        assert arrays["multi"][0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]

    def test_a_multi_field_keeps_as_many_as_it_has_slots(self):
        specs = [FieldSpec("genres", "multi", "genres", slots=12), FieldSpec("moods", "multi", "moods", slots=2)]
        tracks = [Track(str(n), genres=tuple(f"g{i:02}" for i in range(15 - n))) for n in range(15)]
        tracks.append(Track("m", attributes={"moods": ["calm", "wild", "blue"]}))
        found = FieldSet.fit(specs, tracks, {})
        again = FieldSet.from_json(found.to_json())
        arrays = again.transform([tracks[0], tracks[-1]], {})
        assert again == found
        assert found.slots == 12
        assert arrays["multi"].shape == (2, 2, 12)
        assert arrays["multi"][0, 0].tolist() == list(range(1, 13))
        assert arrays["multi"][1, 1].tolist() == [1, 2] + [0] * 10

    def test_fields_without_slots_in_their_json_have_eight(self, fitted):
        state = json.loads(fitted.to_json())
        for spec in state["specs"]:
            del spec["slots"]
        assert FieldSet.from_json(json.dumps(state)) == fitted

    def test_a_field_needs_a_slot(self):
        with pytest.raises(FieldsError, match="0 slots"):
            FieldSpec("genres", "multi", "genres", slots=0)

    def test_numbers_are_standardised_over_the_known(self, fitted):
        arrays = fitted.transform(TRACKS, vectors(4))
        assert arrays["numeric_known"].tolist() == [[1, 1], [1, 0], [1, 1], [0, 0]]
        known = arrays["numeric"][:3, 0]
        assert known.mean() == pytest.approx(0, abs=1e-6)
        assert known.std() == pytest.approx(1, abs=1e-6)
        assert arrays["numeric"][3].tolist() == [0, 0]
        assert fitted.scales["year"][0] == pytest.approx((1827 + 1846 + 182 / 366) / 2)

    def test_dense_vectors_are_cut_into_blocks(self, fitted):
        given_vectors = vectors(4)
        given_vectors["text"][2] = np.nan
        given_vectors["audio"][3, 5] = np.nan
        arrays = fitted.transform(TRACKS, given_vectors)
        assert arrays["dense"].shape == (4, 5, 32)
        assert np.array_equal(arrays["dense"][0, 1], given_vectors["audio"][0, 32:])
        assert np.array_equal(arrays["dense"][0, 2], given_vectors["text"][0, :32])
        assert arrays["dense_known"].tolist() == [[1] * 5, [1] * 5, [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
        assert not arrays["dense"][2, 2:].any()
        assert {str(array.dtype) for name, array in arrays.items() if "dense" in name} == {"float32"}

    def test_groups_name_every_field_in_the_order_of_the_arrays(self, fitted):
        assert fitted.groups == (
            "artist", "explicit", "genres", "born", "year", "audio:0", "audio:1", "text:0", "text:1", "text:2"
        )  # fmt: skip

    def test_an_input_without_fields_is_left_out(self):
        fields = FieldSet.fit(SPECS[:1], TRACKS, {})
        assert fields.inputs == ("categorical",)
        assert set(fields.transform(TRACKS, {})) == {"categorical"}

    def test_no_tracks(self, fitted):
        arrays = fitted.transform([], vectors(0))
        assert {name: array.shape for name, array in arrays.items()} == {
            "categorical": (0, 2), "multi": (0, 1, 8), "numeric": (0, 2), "numeric_known": (0, 2),
            "dense": (0, 5, 32), "dense_known": (0, 5),
        }  # fmt: skip


class TestFitting:
    def test_rare_values_are_unknown(self):
        fields = FieldSet.fit(SPECS[:1], TRACKS, {}, min_count=2)
        assert fields.vocabularies["artist"] == ("schubert",)
        assert fields.transform(TRACKS, {})["categorical"].T.tolist() == [[1, 1, 0, 0]]

    def test_a_number_that_never_varies_or_never_occurs(self):
        specs = [FieldSpec("same", "numeric", "same"), FieldSpec("never", "numeric", "never")]
        tracks = [Track(str(n), attributes={"same": 7.0}) for n in range(3)]
        arrays = FieldSet.fit(specs, tracks, {}).transform(tracks, {})
        assert arrays["numeric"].tolist() == [[0, 0]] * 3
        assert arrays["numeric_known"].tolist() == [[1, 0]] * 3

    def test_small_numbers_vary_too(self):
        tracks = [Track(str(n), attributes={"n": value}) for n, value in enumerate((1e-12, 3e-12))]
        fields = FieldSet.fit([FieldSpec("n", "numeric", "n")], tracks, {})
        assert fields.transform(tracks, {})["numeric"].ravel().tolist() == pytest.approx([-1, 1])

    def test_a_number_far_off_is_cut(self):
        fields = FieldSet((FieldSpec("n", "numeric", "n"),), {}, {"n": (0.0, 1.0)}, {})
        tracks = [Track("t", attributes={"n": value}) for value in (1e99, -1e99, 9.0)]
        assert fields.transform(tracks, {})["numeric"].T.tolist() == [[10, -10, 9]]

    @pytest.mark.parametrize(
        ("value", "number"),
        [(3, 3.0), (2.5, 2.5), (True, 1.0), ("4.5", 4.5), ("0007-01-01", 7.0), ("soon", math.nan),
         (math.inf, math.nan), (1e300, math.nan), (None, math.nan), (["1"], math.nan), ("nan", math.nan)],
    )  # fmt: skip
    def test_what_counts_as_a_number(self, value, number):
        fields = FieldSet((FieldSpec("n", "numeric", "n"),), {}, {"n": (0.0, 1.0)}, {})
        arrays = fields.transform([Track("t", attributes={"n": value})], {})
        assert arrays["numeric_known"].item() == (not math.isnan(number))
        assert arrays["numeric"].item() == (0 if math.isnan(number) else number)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ((FieldSpec("a", "categorical", "artist"),) * 2, "unique"),
            ((), "at least one"),
            ((FieldSpec("a", "dense", "audio", 32), FieldSpec("t", "dense", "text", 16)), "one width"),
            ((FieldSpec("a", "dense", "audio", 48),), "cannot be cut into 48s"),
            ((FieldSpec("l", "dense", "lyrics"),), "needs 'lyrics' vectors"),
        ],
    )
    def test_specifications_that_do_not_fit(self, spec, message):
        with pytest.raises(FieldsError, match=message):
            FieldSet.fit(spec, TRACKS, vectors(4))

    def test_specifications_that_cannot_be(self):
        with pytest.raises(FieldsError, match="kind 'text'"):
            FieldSpec("a", "text", "title")
        with pytest.raises(FieldsError, match="blocks of 0"):
            FieldSpec("a", "dense", "audio", 0)

    def test_vectors_that_do_not_fit(self, fitted):
        for wrong in ({"audio": rows(4)}, {**vectors(4), "text": rows(3, 96)}, {**vectors(4), "text": rows(4, 64)}):
            with pytest.raises(FieldsError, match="text"):
                fitted.transform(TRACKS, wrong)


words = st.none() | st.text(max_size=8)
numbers = st.none() | st.floats(allow_nan=True, width=32) | st.text(max_size=4)
tracks = st.lists(
    st.builds(
        lambda number, artist, explicit, genres, born, date: Track(
            str(number), artist=artist, explicit=explicit, genres=tuple(genres), release_date=date,
            attributes={} if born is None else {"composer_born": born},
        ),
        st.integers(), words, st.none() | st.booleans(), st.lists(st.text(max_size=5), max_size=12), numbers,
        st.none() | st.dates().map(str),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


class TestProperties:
    @given(tracks, tracks, st.integers(1, 3))
    def test_json_gives_an_equal_set(self, training, others, min_count):
        fields = FieldSet.fit(SPECS, training, vectors(len(training)), min_count)
        again = FieldSet.from_json(fields.to_json())
        assert again == fields
        before, after = (each.transform(others, vectors(len(others))) for each in (fields, again))
        assert before.keys() == after.keys() == set(fields.inputs)
        assert all(np.array_equal(before[name], after[name]) for name in before)

    @given(tracks, tracks)
    def test_arrays_are_finite_bounded_and_independent_of_company(self, training, others):
        fields = FieldSet.fit(SPECS, training, vectors(len(training)))
        together = fields.transform(others, vectors(len(others), 5))
        for kind in ("categorical", "multi"):
            sizes = np.array(fields.sizes(kind)).reshape((1, -1) if kind == "categorical" else (1, -1, 1))
            assert (together[kind] >= 0).all()
            assert (together[kind] < sizes).all()
        for name in ("numeric", "numeric_known", "dense", "dense_known"):
            assert np.isfinite(together[name]).all()
        row = {name: part[-1:] for name, part in vectors(len(others), 5).items()}
        alone = fields.transform(others[-1:], row)
        assert all(np.array_equal(alone[name], together[name][-1:]) for name in alone)

    @given(tracks)
    def test_every_known_value_has_an_id(self, training):
        fields = FieldSet.fit(SPECS, training, vectors(len(training)))
        arrays = fields.transform(training, vectors(len(training)))
        for track, ids in zip(training, arrays["categorical"], strict=True):
            assert (ids[0] > 0) == bool(track.artist and track.artist.split())
            assert (ids[1] > 0) == (track.explicit is not None)


class TestDamage:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{",
            '{"format": 1}',
            '{"format": 1, "specs": [{}], "vocabularies": {}, "scales": {}, "widths": {}}',
        ],
    )
    def test_a_damaged_file(self, text):
        with pytest.raises(FieldsError, match="publish the release again"):
            FieldSet.from_json(text)

    @pytest.mark.parametrize(
        ("part", "name", "value"),
        [("vocabularies", "artist", None), ("scales", "year", None), ("widths", "text", None),
         ("scales", "year", [1.0, 0.0]), ("scales", "year", [math.nan, 1.0]), ("scales", "year", [1.0])],
    )  # fmt: skip
    def test_a_field_without_what_was_fitted_to_it(self, fitted, part, name, value):
        state = json.loads(fitted.to_json())
        state[part].pop(name)
        if value is not None:
            state[part][name] = value
        with pytest.raises(FieldsError, match="publish the release again"):
            FieldSet.from_json(json.dumps(state))

    def test_a_newer_format(self, fitted):
        newer = {**json.loads(fitted.to_json()), "format": 2}
        with pytest.raises(FieldsError, match="format 2; this version reads 1"):
            FieldSet.from_json(json.dumps(newer))

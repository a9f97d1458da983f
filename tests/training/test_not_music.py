"""Nothing of BCL and CAT is music: recipes, by cuisine, ingredients and minutes, and the cooks they are for."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from index.tracks.track import Track
from training.__main__ import main
from training.bcl.config import bcl_preset
from training.bcl.train import BclResult, train_bcl
from training.data.dataset import TEST, TRAIN, DataSet
from training.data.writing import write_dataset
from training.evaluation.audience import AudienceProtocol, evaluate_audience
from training.evaluation.cat import cat_scorer
from training.evaluation.matching import MatchingProtocol, evaluate_matching, inner_product, matching_task
from training.progress import Silent

SEED = 7
RECIPES, COOKS, TASTES = 420, 300, 6
FIELDS = ("cuisine", "ingredients", "minutes")


@dataclass
class Kitchen:
    """A data set directory of recipes, read back, and the matcher trained on it."""

    recipes: DataSet
    result: BclResult

    @property
    def cooked(self) -> sparse.csr_array:
        """How often who cooked what, [cooks, recipes]."""
        listens = self.recipes.listens
        shape = (len(listens.listener_ids), len(self.recipes.tracks))
        return sparse.csr_array((listens.plays.astype(float), (listens.listener, listens.row)), shape=shape)

    def rows(self, split: int) -> np.ndarray:
        return np.flatnonzero(self.recipes.track_split == split)


def write_recipes(root: Path) -> None:
    """No title, artist, album, audio or text. A taste shows in all three fields, in none of them for certain."""
    rng = np.random.default_rng(SEED)
    taste = rng.integers(0, TASTES, RECIPES)
    larder = np.array([rng.permutation(48)[:10] for _ in range(TASTES)])  # what a taste likes to cook with
    recipes = [
        Track(
            f"recipe-{row}",
            attributes={
                "cuisine": f"cuisine {(kind + (rng.random() < 0.2) * rng.integers(0, TASTES)) % TASTES // 2}",
                "ingredients": [
                    f"ingredient {rng.choice(larder[kind]) if rng.random() < 0.75 else rng.integers(0, 48)}"
                    for _ in range(rng.integers(4, 8))
                ],
                "minutes": float(np.round(np.exp(rng.normal(2.5 + 0.4 * (kind % 3), 0.4)))),
            },
        )
        for row, kind in enumerate(taste)
    ]
    likes = rng.integers(0, TASTES, COOKS)
    cooked = rng.random((COOKS, RECIPES)) < np.where(likes[:, None] == taste, 0.3, 0.02)
    listens = [(f"cook-{u}", f"recipe-{r}", float(rng.integers(1, 6)), False) for u, r in np.argwhere(cooked)]
    split = ["train"] * 300 + ["valid"] * 50 + ["test"] * 70
    write_dataset(root, recipes, listens=listens, splits={("track", f"recipe-{r}"): s for r, s in enumerate(split)})


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    root = tmp_path_factory.mktemp("recipes")
    write_recipes(root)
    recipes = DataSet.open(root, attributes=FIELDS)
    config = bcl_preset("demo", seed=SEED, hidden=(64,))
    config = replace(config, loop=replace(config.loop, epochs=25, lr=3e-3))
    result = train_bcl(recipes.tracks, {}, recipes.listens, recipes.track_split, root / "bcl", config, Silent())
    return Kitchen(recipes, result)


def test_the_fields_are_those_of_the_catalogue(kitchen: Kitchen) -> None:
    chosen = {spec.name: spec.kind for spec in kitchen.result.model.config.fields}
    assert chosen == {"cuisine": "categorical", "ingredients": "multi", "minutes": "numeric"}
    assert kitchen.result.pairs > 1000


def test_new_recipes_find_recipes_with_their_cooks(kitchen: Kitchen) -> None:
    protocol = MatchingProtocol(cuts=(10,))
    task = matching_task((kitchen.cooked > 0).astype(float), kitchen.rows(TEST), kitchen.rows(TRAIN), protocol)
    found = evaluate_matching({"bcl": inner_product(kitchen.result.vectors)}, task)
    recall = found.method("bcl").figures["R@10"]
    print(f"seed {SEED}: Recall@10 {recall.value:.3f} [{recall.low:.3f}, {recall.high:.3f}]", found.chance["R@10"])
    assert len(task.queries) == 70
    assert recall.low > 2 * found.chance["R@10"]


def test_new_recipes_find_their_cooks(kitchen: Kitchen) -> None:
    """Through index.audience.cat: clusters of the cooks of similar recipes, and the nearest cooks to each."""
    warm = kitchen.cooked.copy()
    warm.data[kitchen.recipes.track_split[warm.indices] != TRAIN] = 0
    warm.eliminate_zeros()
    with cat_scorer(kitchen.recipes.tracks, kitchen.result.matching, warm) as cat:
        found = evaluate_audience({"cat": cat}, kitchen.cooked > 0, kitchen.rows(TEST), AudienceProtocol(cuts=(30,)))
    area, lift = (found.method("cat").figures[name] for name in ("AUC", "lift@10%"))
    print(f"seed {SEED}: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], lift at a tenth {lift.value:.2f}")
    assert area.low > 0.65
    assert lift.low > 1.5


def test_the_command_line_trains_and_measures_what_is_no_music(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without anything to hear or to read: `bcl --alone`, then the figures of matching and of audiences."""
    write_recipes(tmp_path / "recipes")
    where = [str(tmp_path / "recipes"), "--work", str(tmp_path / "work")]
    assert run(["bcl", *where, "--alone", "--preset", "demo", "--fields", ",".join(FIELDS)]) == 0
    assert run(["evaluate", *where]) == 0
    said = capsys.readouterr()
    assert "matching: 70 queries" in said.out + said.err
    assert "Debut (CAT)" in said.out + said.err
    assert run(["publish", *where]) == 2
    assert "python -m training larp" in capsys.readouterr().err


def run(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["training", *arguments])
        try:
            return main()
        except SystemExit as ended:
            return int(ended.code or 0)

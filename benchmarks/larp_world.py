"""python -m benchmarks.larp_world: LARP's ablation on worlds with a known answer (`make bench-larp`).

Each seed makes a world (training/data/synthetic), renders it, and trains the towers from scratch through all stages and
with both ways of fusing. Figures are means over all test playlists of all seeds, intervals bootstraps over playlists,
differences are taken playlist by playlist. Exits with 1 when the order that the method promises does not come out.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from training.evaluation.estimates import Estimate, bootstrap, paired_difference

SEEDS = (0, 1, 2, 3, 4)
PLAYLISTS = 600
CHANCE, AUDIO, TEXT = "chance", "WTC, audio alone", "WTC, text alone"
WTC, TTC, PLAIN, FULL = "LARP-WTC", "LARP-TTC", "LARP-TPC, no fusion", "LARP-TPC-fusion"
ORACLE = "oracle"
WANTED_SHARE, NO_WORSE = 0.6, 0.01
PerPlaylist = dict[str, list[float]]


def main() -> int:
    """Run all seeds, two at once at most, and print what came out."""
    began = time.perf_counter()
    workers = min(2, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(one_seed, SEEDS))
    pooled = {name: np.concatenate([np.array(part[name]) for part in found]) for name in found[0]}
    print(_table(pooled, found))
    checks = _checks(pooled)
    for what, holds in checks:
        print(f"{'holds ' if holds else 'FAILS '} {what}")
    print(f"{len(SEEDS)} seeds, {len(pooled[FULL])} test playlists, {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0 if all(holds for _, holds in checks) else 1


def one_seed(seed: int) -> PerPlaylist:
    """Recall@10 of every test playlist in one seed's world, by method."""
    import torch

    from training.data.clips import ClipCache
    from training.data.dataset import TEST, DataSet
    from training.data.synthetic import WorldConfig, make_world
    from training.evaluate import test_queries
    from training.evaluation.baselines import random_continuation
    from training.evaluation.continuation import ContinuationProtocol, evaluate_continuation, mean_of_seeds
    from training.larp.presets import larp_preset
    from training.progress import Progress, Silent
    from training.report.variants import Study

    torch.set_num_threads(1)
    progress = Progress()
    world = make_world(WorldConfig(playlists=PLAYLISTS, seed=seed))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        world.write(root / "data", Silent())
        dataset = DataSet.open(root / "data")
        clips = ClipCache.build(dataset, root / "clips", Silent(), workers=1)
        preset = larp_preset("world", seed=seed)
        config = replace(preset, clauses=("title", "artist"), loop=replace(preset.loop, threads=1))
        began = time.perf_counter()
        variants = Study(dataset, clips, config, root / "study", Silent()).ablation()
        progress.say(f"seed {seed}: trained in {(time.perf_counter() - began) / 60:.1f} minutes")
    protocol = ContinuationProtocol(cuts=(10,), tie_draws=5)
    vectors = {name: variants[name].joined for name in (WTC, TTC, PLAIN, FULL)}
    vectors |= {"untrained": variants["untrained"].joined}
    vectors |= {AUDIO: variants[WTC].vectors["audio"], TEXT: variants[WTC].vectors["text"]}
    methods = {name: mean_of_seeds(table) for name, table in vectors.items()}
    oracle = world.oracle()
    methods |= {ORACLE: oracle.scorer(), "oracle, hears only": oracle.scorer("audible")}
    methods |= {"oracle, reads only": oracle.scorer("written"), CHANCE: random_continuation()}
    candidates = np.flatnonzero(dataset.track_split == TEST)
    result = evaluate_continuation(methods, test_queries(dataset, protocol), candidates, protocol)
    return {name: result.method(name).per_query["R@10"].tolist() for name in methods}


def _table(pooled: dict[str, np.ndarray], found: list[PerPlaylist]) -> str:
    width = max(map(len, pooled))
    oracle = pooled[ORACLE].mean()
    lines = [f"{'':{width}}  Recall@10 [95 %]          of oracle  by seed"]
    for name, values in sorted(pooled.items(), key=lambda item: item[1].mean()):
        seeds = " ".join(f"{np.mean(part[name]):.3f}" for part in found)
        lines.append(f"{name:{width}}  {_told(bootstrap(values))}  {values.mean() / oracle:9.2f}  {seeds}")
    return "\n".join(lines)


def _checks(pooled: dict[str, np.ndarray]) -> list[tuple[str, bool]]:
    def above(higher: str, lower: str) -> tuple[str, bool]:
        found = paired_difference(pooled[higher], pooled[lower])
        return f"{higher} > {lower}: {_told(found, '+')}", found.low > 0

    wtc, ttc = bootstrap(pooled[WTC]), bootstrap(pooled[TTC])
    fusion = paired_difference(pooled[FULL], pooled[PLAIN])
    share = pooled[FULL].mean() / pooled[ORACLE].mean()
    return [
        *(above(alone, CHANCE) for alone in (AUDIO, TEXT)),
        *(above(WTC, alone) for alone in (AUDIO, TEXT)),
        above(TTC, WTC),
        (f"the intervals of {WTC} and {TTC} are apart: {_told(wtc)}, {_told(ttc)}", ttc.low > wtc.high),
        (f"{FULL} reaches {WANTED_SHARE:.0%} of the oracle: {share:.1%}", share >= WANTED_SHARE),
        (f"{FULL} is no worse than {PLAIN}: {_told(fusion, '+')}", fusion.high > 0 and fusion.value > -NO_WORSE),
    ]


def _told(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


if __name__ == "__main__":
    sys.exit(main())

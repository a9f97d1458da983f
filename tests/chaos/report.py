"""What a run came to, as text."""

import statistics
from collections import Counter

from tests.chaos.run import Report

LATE_S = 5.0
MOST_STORIES = 5


def summary(report: Report) -> str:
    """Figures of a run, a line each."""
    kills = Counter(kill.victims for kill in report.plan.kills)
    during = sum(len(kill.starting) for kill in report.plan.kills)
    total = kills.total() + during
    answers = ", ".join(f"{count:,} x {name}" for name, count in sorted(report.counts.items(), key=lambda c: -c[1]))
    lines = [
        f"ledger: {report.ledger}; seed {report.plan.seed}; a release of {report.tracks:,} tracks",
        f"operations: {len(report.plan.operations):,} in {report.seconds:.0f} s: {answers}",
        f"SIGKILL: {total} times, {report.signals} processes: {', '.join(f'{n} x {who}' for who, n in kills.items())}, "
        f"{during} x in the midst of a start",
        f"folds: {dict(Counter('killed' if said == 'killed' else 'done' for said in report.folds))}",
        f"audits: {len(report.audits)}, {statistics.median(report.audits):.2f} s in the median; "
        f"{report.looked:,} looks at tracks, {report.compared:,} scores compared, {report.exact:,} equal to the last "
        "digit told",
        f"at the end: {report.live:,} of our tracks, {report.events:,} events in the ledger",
        *_starts(report),
        f"acknowledged and lost, back, there twice or by half: {len(report.model.wrong)}",
    ]
    return "\n".join(lines)


def _starts(report: Report) -> list[str]:
    if not report.starts:
        return []
    wall = sorted(start.wall_s for start in report.starts)
    cpu = sorted(start.cpu_s for start in report.starts)
    late = sum(seconds > LATE_S for seconds in wall)
    return [
        f"starts until ready: {len(wall)}, median {statistics.median(wall):.2f} s, longest {wall[-1]:.2f} s, "
        f"{late} above {LATE_S:.0f} s; processor time: median {statistics.median(cpu):.2f} s, most {cpu[-1]:.2f} s"
    ]


def failures(report: Report) -> str:
    """What was wrong, with the histories of the tracks it was about."""
    wrong = report.model.wrong
    lines = [f"{len(wrong)} things are wrong; run it again with --seed {report.plan.seed}", *wrong[:20]]
    about = list(dict.fromkeys(said.partition(":")[0] for said in wrong))
    for track_id in about[:MOST_STORIES]:
        lines += ["", f"{track_id}:", report.model.story(track_id)]
    return "\n".join(lines)

"""Coverage of the intervals, power of the retention gate, and the time of a large bootstrap.

    python benchmarks/stats.py [--trials 100000] [--out benchmarks/results/stats.json]

Samples of an item are beta-binomial: an item's rate is drawn from a beta distribution with the mean p and the
intraclass correlation (spread) that the table names; at 0 all items have the rate p. With one sample an item the spread
leaves no trace, and the coverage is summed exactly over the binomial distribution.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from prismlab.evaluate.retention import retention
from prismlab.stats import cluster_bootstrap, paired_items, power_items
from prismlab.stats.proportions import score_bounds, worth_of

RATES, ITEMS, SAMPLES = (0.02, 0.5, 0.98), (30, 200, 2000), (1, 8, 64)
SPREADS = (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
LEAST, MOST, ENOUGH = 0.93, 0.97, 5.0
"""Bounds on the coverage of a nominal 95%; the upper one where n p (1 - p) is at least ``ENOUGH``."""


def covers(right: np.ndarray, squares: np.ndarray, n: int, m: int, p: float) -> np.ndarray:
    """Whether the interval of ``clustered_proportion`` holds p, from moments of many sets of n items, [trials].

    Args:
        right: right samples of each set.
        squares: sum over its items of the squared number of right samples.
    """
    mean = right / (n * m)
    trials, df = np.full(len(mean), float(n)), np.full(len(mean), np.inf)
    if m > 1:
        of_mean = np.maximum(0.0, squares / (n * m * m) - mean**2) / (n - 1)
        trials, df = worth_of(n, m, of_mean, mean * (1 - mean))
    lo, hi = score_bounds(mean, trials, scipy.special.stdtrit(df, 0.975))
    return (lo <= p) & (p <= hi)


def histograms(rng: np.random.Generator, p: float, n: int, m: int, spread: float, trials: int) -> np.ndarray:
    """How many of n items have 0, 1, ... m right samples, [trials, m + 1]: all that an interval depends on."""
    counts = np.arange(m + 1)
    if spread == 0:
        chances = scipy.stats.binom.pmf(counts, m, p)
    else:
        strength = 1 / spread - 1
        chances = scipy.stats.betabinom.pmf(counts, m, p * strength, (1 - p) * strength)
    return rng.multinomial(n, chances / chances.sum(), size=trials)


def covered(rng: np.random.Generator, p: float, n: int, m: int, spread: float, trials: int) -> tuple[float, float]:
    """Share of intervals that hold p, and the standard error of that share (0 where it is exact)."""
    counts = np.arange(m + 1)
    if m == 1:
        right = np.arange(n + 1)
        return float(scipy.stats.binom.pmf(right, n, p) @ covers(right, right, n, 1, p)), 0.0
    found = histograms(rng, p, n, m, spread, trials)
    share = float(covers(found @ counts, found @ counts**2, n, m, p).mean())
    return share, (share * (1 - share) / trials) ** 0.5


def coverage(trials: int, samples: tuple[int, ...] = SAMPLES, items: tuple[int, ...] = ITEMS) -> list[dict[str, Any]]:
    """The table of coverages of ``clustered_proportion``."""
    rng, found = np.random.default_rng(1), []
    for spread, m, n, p in itertools.product(SPREADS, samples, items, RATES):
        if m == 1 and spread:
            continue
        share, error = covered(rng, p, n, m, spread, trials)
        fits = share >= LEAST and (share <= MOST or n * p * (1 - p) < ENOUGH)
        row = {"spread": spread if m > 1 else None, "samples": m, "items": n, "rate": p, "coverage": share}
        found.append({**row, "error": error, "trials": trials if m > 1 else None, "fits": fits})
    return found


def paired_coverage(trials: int) -> list[dict[str, Any]]:
    """Coverage of ``paired_items``: a share ``moved`` of items is answered anew, at a rate that loses ``loss``."""
    rng, found = np.random.default_rng(2), []
    for n, m, moved, loss in itertools.product((30, 200, 2000), (1, 8), (0.02, 0.2, 1.0), (0.0, 0.02)):
        p, times = 0.5, trials if n * m <= 2000 else max(300, trials // 4)
        anew = p - loss / moved
        if not 0.0 <= anew <= 1.0:
            continue
        labels, hits = np.repeat(np.arange(n), m), 0
        for _ in range(times):
            # Half of the items are surely right, half are at chance: alike within an item, and shared by both sides.
            rate = np.where(rng.random(n) < 0.5, p + 0.25, p - 0.25)
            fresh = rng.random(n) < moved
            old = rng.random((n, m)) < rate[:, None]
            again = rng.random((n, m)) < (rate + anew - p)[:, None]
            new = np.where(fresh[:, None], again, old)
            interval = paired_items(new.ravel(), old.ravel(), labels).interval
            hits += (interval.lo or 0.0) <= -loss <= (interval.hi or 0.0)
        found.append(
            {"items": n, "samples": m, "moved": moved, "loss": loss, "coverage": hits / times, "trials": times}
        )
    return found


def _rows(scores: np.ndarray, task: str) -> list[dict[str, Any]]:
    return [{"task": task, "item_id": str(i), "sample": 0, "score": float(s)} for i, s in enumerate(scores)]


def power(trials: int, items: int = 2000, moved: float = 0.1, rate: float = 0.6, margin: float = 1.0) -> dict[str, Any]:
    """The gate on six benchmarks, one of which lost 3 points: how often it is caught, and a retained model passes."""
    rng, loss = np.random.default_rng(3), 0.03
    anew = rate - loss / moved
    caught = alarms = passed = missed = 0
    for _ in range(trials):
        base, new, same = [], [], []
        for k in range(6):
            old, fresh = rng.random(items) < rate, rng.random(items) < moved
            kept = np.where(fresh, rng.random(items) < rate, old)
            lost = np.where(fresh, rng.random(items) < (anew if k == 0 else rate), old)
            base, new, same = base + _rows(old, f"t{k}"), new + _rows(lost, f"t{k}"), same + _rows(kept, f"t{k}")
        found = retention(base, new, margin)["tasks"]
        caught += found["t0"]["verdict"] == "regressed"
        missed += found["t0"]["verdict"] == "retained"
        alarms += any(found[f"t{k}"]["verdict"] == "regressed" for k in range(1, 6))
        passed += retention(base, same, 2 * margin)["verdict"] == "retained"
    differ = moved * (rate * (1 - anew) + (1 - rate) * anew)
    alike = moved * 2 * rate * (1 - rate)
    return {
        "items": items,
        "margin": margin,
        "loss": 100 * loss,
        "trials": trials,
        "caught": caught / trials,
        "caught, stated": power_items(loss - margin / 100, items, differ - loss**2, 0.025 / 6),
        "lost and called retained": missed / trials,
        "another one called regressed": alarms / trials,
        "retained model passes at twice the margin": passed / trials,
        "passes, stated": power_items(2 * margin / 100, items, alike) ** 6,
    }


def bootstrap_time(items: int = 14_042, resamples: int = 10_000) -> dict[str, float]:
    """Seconds of the bootstrap of a mean: continuous scores, and right or wrong."""
    rng, found = np.random.default_rng(4), {}
    for name, values in (
        ("continuous", rng.random(items)),
        ("right or wrong", (rng.random(items) < 0.6).astype(float)),
    ):
        begun, spent = time.perf_counter(), time.process_time()
        cluster_bootstrap(values, range(items), resamples=resamples)
        found[name] = time.perf_counter() - begun
        found[f"{name}, of the processor"] = time.process_time() - spent
    return found


def show_coverage(table: list[dict[str, Any]]) -> None:
    """Print the table of coverages, percent; ``!`` marks what lies outside the bounds."""
    print("\ncoverage of a nominal 95%, percent; columns: items and rate; spread: intraclass correlation")
    print("samples spread  " + "  ".join(f"{n:>4}/{p:<4g}" for n, p in itertools.product(ITEMS, RATES)))
    for m, spread in dict.fromkeys((row["samples"], row["spread"]) for row in table):
        cells = [row for row in table if (row["spread"], row["samples"]) == (spread, m)]
        texts = [f"{100 * row['coverage']:>8.2f}{' ' if row['fits'] else '!'}" for row in cells]
        print(f"{m:>7} {'any' if spread is None else format(spread, 'g'):>6}  " + "  ".join(texts))
    print("one sample an item: exact; else the largest standard error is", f"{max(r['error'] for r in table):.2%}")
    enough = [r["coverage"] for r in table if r["items"] * r["rate"] * (1 - r["rate"]) >= ENOUGH]
    least = min(row["coverage"] for row in table)
    print(f"least {least:.2%}; most where n p (1 - p) is 5 or more {max(enough):.2%}")
    print(f"outside the bounds: {sum(not row['fits'] for row in table)} of {len(table)}")


def main() -> None:
    """Run all, print the tables, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000, help="sets of items a cell of the coverage")
    parser.add_argument("--paired", type=int, default=4000, help="sets of pairs a row of the paired coverage")
    parser.add_argument("--gates", type=int, default=400, help="gates of the power")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stats.json")
    chosen = parser.parse_args()
    seconds = bootstrap_time()
    load = os.getloadavg()[0]
    for name, value in seconds.items():
        print(f"bootstrap, 10,000 resamples of 14,042 items, {name}: {value:.2f} s (load {load:.1f})")
    table = coverage(chosen.trials)
    show_coverage(table)
    pairs = paired_coverage(chosen.paired)
    print("\npaired differences: items, samples, share answered anew, loss, coverage")
    for row in pairs:
        print(
            f"{row['items']:>6} {row['samples']:>3} {row['moved']:>5g} {row['loss']:>5g}  {100 * row['coverage']:.1f}"
        )
    gate = power(chosen.gates)
    print("\nretention gate, six benchmarks")
    for name, value in gate.items():
        print(f"  {name}: {value:.4g}")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"load": load, "bootstrap_seconds": seconds, "coverage": table, "paired": pairs, "gate": gate}
    chosen.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

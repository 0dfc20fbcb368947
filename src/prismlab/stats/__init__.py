"""Intervals, tests and power: the statistics that every verdict and every score rests on.

The unit of inference is the seed (Student's t over seeds) or the item (all samples of an item together).
Where an interval cannot be had, its bounds are None and ``reason`` says why: missing is not zero.
"""

from __future__ import annotations

from prismlab.stats.decisions import Equivalence, equivalence, holm, non_inferiority
from prismlab.stats.interval import Floats, Interval, Statistic
from prismlab.stats.paired import PairedItems, paired_items
from prismlab.stats.planning import (
    detectable_difference_items,
    items_to_decide,
    power_items,
    samples_to_decide,
    variance_of_item,
    variance_parts,
)
from prismlab.stats.proportions import clustered_proportion, mean_pass_at_k, pass_at_k, wilson
from prismlab.stats.resample import bootstrap_ratio, bootstrap_statistic, cluster_bootstrap
from prismlab.stats.student import (
    detectable_difference_t,
    mean_t,
    p_value_t,
    paired_difference,
    power_t,
    seeds_to_decide,
)

__all__ = [
    "Equivalence",
    "Floats",
    "Interval",
    "PairedItems",
    "Statistic",
    "bootstrap_ratio",
    "bootstrap_statistic",
    "cluster_bootstrap",
    "clustered_proportion",
    "detectable_difference_items",
    "detectable_difference_t",
    "equivalence",
    "holm",
    "items_to_decide",
    "mean_pass_at_k",
    "mean_t",
    "non_inferiority",
    "p_value_t",
    "paired_difference",
    "paired_items",
    "pass_at_k",
    "power_items",
    "power_t",
    "samples_to_decide",
    "seeds_to_decide",
    "variance_of_item",
    "variance_parts",
    "wilson",
]

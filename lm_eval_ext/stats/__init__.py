"""Statistics of paired runs: pure functions on arrays.

`bootstrap` draws whole questions, `significance` tests without assuming a normal distribution, `power` says what a number
of items can show, `region` shifts the whole position, `front` compares many positions, `recovery` and `nulls` compare an
effect with what was lost and with what controls do.
"""

from __future__ import annotations

from lm_eval_ext.stats.bootstrap import (
    LEVEL,
    MIN_CHANGED,
    RESAMPLES,
    ClusterBootstrap,
    Interval,
    cluster_bootstrap,
    paired_difference,
    resample_together,
)
from lm_eval_ext.stats.front import dominated_by, front_distance, hypervolume, on_front
from lm_eval_ext.stats.nulls import NullBand, null_band
from lm_eval_ext.stats.power import smallest_difference, smallest_shortfall
from lm_eval_ext.stats.recovery import Recovery, recovery
from lm_eval_ext.stats.region import QUADRANTS, JointShift
from lm_eval_ext.stats.significance import holm, mcnemar, share_test, sign_flip

__all__ = [
    "LEVEL",
    "MIN_CHANGED",
    "QUADRANTS",
    "RESAMPLES",
    "ClusterBootstrap",
    "Interval",
    "JointShift",
    "NullBand",
    "Recovery",
    "cluster_bootstrap",
    "dominated_by",
    "front_distance",
    "holm",
    "hypervolume",
    "mcnemar",
    "null_band",
    "on_front",
    "paired_difference",
    "recovery",
    "resample_together",
    "share_test",
    "sign_flip",
    "smallest_difference",
    "smallest_shortfall",
]

"""Which plans are controls."""

from __future__ import annotations

import pytest

from lm_eval_ext.steering.controls import control_of


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        ("", None),
        ("loc@8:2", None),
        ("en@42%:2+loc@58%:5%/last", None),
        ("loc~random@8", "random"),
        ("loc~random7@8:2", "random"),
        ("en@4:1+loc~random7@8:2", "random"),
        ("loc~random7@8:-2", "random"),
        ("loc~shuffled@8", "shuffled"),
        ("loc~shuffled2@8:-2", "shuffled"),
        ("en~other@4:1+loc~shuffled2@8:2", "shuffled"),
        ("loc~other@8:2", "other_language"),
        ("loc~zh@8:-2", "other_language"),
        ("loc@8:-2", "negated"),
        ("en@4:-1+loc@8:2", "negated"),
        ("loc@8:-0.5%", "negated"),
        ("~/vectors-of-mine.pt", None),  # the harness's own `steered` model names a file where ours has a plan
    ],
)
def test_a_plan_is_a_control_of_one_kind_or_none(plan: str, kind: str | None) -> None:
    assert control_of(plan) == kind

"""The reference of the library: every public name where mkdocstrings finds it."""

from __future__ import annotations

import lm_eval_ext

_GROUPS = {
    "Pairs, vectors and steering": ["Pair", "PairSet", "load_pairs", "extract", "VectorSet", "Plan"],
    "Evaluations": ["embedded_model", "evaluate", "sweep", "SweepResult"],
    "Results": ["load", "Runs", "plane", "Plane", "report", "Report"],
    "Estimators of your own": ["Estimator", "PairStates", "StateBatch", "Transform", "register_estimator"],
    "Errors": ["UserError"],
}
#: The functions behind packages that can be called.
_CALLED = {"plane": "plane.shifts.measure", "report": "report.build.report", "sweep": "sweep.run.sweep"}

_INTRODUCTION = """# Library

```python
import lm_eval_ext as lx
```

These names are public and follow semantic versioning (see the [deprecation policy](../project/deprecation.md)); everything
else is private. Importing the package takes milliseconds: each name is imported when it is first used. Every example below
is run by the test suite.
"""


def page() -> str:
    """The page, for mkdocstrings.

    Raises:
        ValueError: a public name that is in no group.
    """
    grouped = {name for names in _GROUPS.values() for name in names}
    if missing := set(lm_eval_ext.__all__) - grouped - {"__version__"}:
        raise ValueError(f"docs/api_page.py: no group has {', '.join(sorted(missing))}")
    parts = [_INTRODUCTION]
    for title, names in _GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            path = _CALLED.get(name) or f"{lm_eval_ext._HOMES[name]}.{name}"
            parts.append(f"::: lm_eval_ext.{path}\n    options:\n      heading: lx.{name}\n      toc_label: {name}\n")
    return "\n".join(parts)

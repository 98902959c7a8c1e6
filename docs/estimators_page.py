"""The reference of the estimators, from the docstrings of their modules (read, not imported)."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "lm_eval_ext" / "steering" / "estimators"

_INTRODUCTION = """# Estimators

An estimator makes of the pairs' hidden states what is applied to the residual stream. `extract --estimator NAME` takes one
for all kinds, `--estimator KIND=NAME` for one kind, `NAME:field=value,field=value` its parameters:

```console
lm-eval-ext extract --estimator en=least_squares:rank=16 --estimator loc=rotation:direction=lda --out v.safetensors
```

`--shuffled 5` adds fits on shuffled pairs, the strictest [control](../concepts/controls.md). One of your own:
[Write an estimator](../how-to/own-estimator.md).
"""


def page() -> str:
    """All estimators of the package, the default first."""
    from lm_eval_ext.steering.registry import _BUILT_IN

    parts = [_INTRODUCTION]
    for name, target in _BUILT_IN.items():
        module, _, class_name = target.partition(":")
        tree = ast.parse((FOLDER / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8"))
        summary, _, rest = (ast.get_docstring(tree) or "").partition("\n\n")
        fields = _fields(tree, class_name)
        parts.append(f"## {name}\n\n{_escaped(summary)}\n\n{_escaped(rest)}\n")
        if fields:
            parts.append("Parameters: " + ", ".join(f"`{field}`" for field in fields) + "\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_") if "`" not in text else text


def _fields(tree: ast.Module, class_name: str) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return [
                ast.unparse(field).replace(": ", " : ", 1).partition(" : ")[0]
                + (f"={ast.unparse(field.value)}" if field.value else "")
                for field in node.body
                if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation)
            ]
    return []

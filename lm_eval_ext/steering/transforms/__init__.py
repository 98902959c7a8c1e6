"""What is done to the residual stream with what an estimator learnt: one transform per module.

An outside estimator may bring its own (see `steering.registry`).
"""

from lm_eval_ext.steering.transforms.base import Artifact, Transform

__all__ = ["Artifact", "Transform"]

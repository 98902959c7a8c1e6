"""How a steering artifact is learnt from hidden states of contrastive pairs: one estimator per module."""

from lm_eval_ext.steering.estimators.base import Estimator, Fitted, Origin, PairStates, StateBatch

__all__ = ["Estimator", "Fitted", "Origin", "PairStates", "StateBatch"]

"""The values of settings that are names."""

from typing import Literal

ObserverWeights = Literal["uniform", "posterior"]
"""The observer's model of the expert given the state: w_c = 1/E, or w_c = p(c|s)."""
PGObserverName = Literal["uniform", "posterior", "learned"]
ObserverName = Literal["uniform", "posterior", "learned", "none"]
"""Weights of the observer trained against: the same two, a classifier q(c|s) that is trained
along, or no observer at all."""
AlgorithmName = Literal["pg", "ppo"]
"""PG-APE over whole episodes, or PPO-APE over rollouts of fixed length."""
ConstraintName = Literal["multipliers", "gate"]
"""Methods that keep the experts at ``min_return``."""
StdName = Literal["constant", "state"]
"""Whether a Gaussian head's standard deviations are constant or depend on the state."""
CriticForm = Literal["separate", "shared"]
"""V_c and V_o are learned apart, or V_c is regressed on both returns (paper, Eq. 4 as printed)."""
HeadName = Literal["tabular", "mlp", "conv", "gaussian"]
PGHeadName = Literal["tabular", "mlp", "conv"]
"""Kinds of expert heads that PG-APE can train."""
ActivationName = Literal["tanh", "relu"]

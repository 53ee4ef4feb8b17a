"""Recipes: the settings that each algorithm and kind of head is trained with first."""

import dataclasses

from ape_jax.settings.algorithms import (
    Hypers,
    PGConfig,
    PGHypers,
    PPOConfig,
    PPOHypers,
    TrainConfig,
)
from ape_jax.settings.names import AlgorithmName, HeadName


def recipe(
    head: HeadName = "tabular", min_return: float | None = None, algorithm: AlgorithmName = "pg"
) -> tuple[TrainConfig, Hypers]:
    """Settings that train a kind of head: with pg on the gridworld, with ppo elsewhere.

    With ``min_return``, which is the constrained form, pg trains longer: multipliers have to
    settle, and learning rates have to fall for the experts to end on the constraint.

    Raises:
      SettingError: the algorithm has no such head.
    """
    if algorithm == "ppo":
        return _ppo_recipe(head, min_return)
    return _pg_recipe(head, min_return)


def _pg_recipe(head, min_return: float | None) -> tuple[PGConfig, PGHypers]:
    constrained = min_return is not None
    if head != "mlp":
        hypers = PGHypers(min_return=min_return, lr_end_fraction=0.1 if constrained else 1.0)
        return PGConfig(head=head, num_updates=6000 if constrained else 3000), hypers
    hypers = PGHypers(
        beta=0.27,
        learning_rate=1e-2,
        critic_learning_rate=0.1,
        lr_end_fraction=0.02,
        min_return=min_return,
    )
    if constrained:
        # Without the entropy, an expert now and then ends up certain of a bad action.
        hypers = dataclasses.replace(hypers, ent_coef=0.1, max_multiplier=30.0)
    return PGConfig(head="mlp", num_updates=5000 if constrained else 4000), hypers


def _ppo_recipe(head: HeadName, min_return: float | None) -> tuple[PPOConfig, PPOHypers]:
    gaussian = head == "gaussian"
    train = PPOConfig(
        head=head,
        hidden_sizes=(64, 64),
        envs_per_expert=16,
        num_updates=300,
        observer="learned",
        constraint="multipliers" if min_return is None else "gate",
        normalize_observations=gaussian,
        normalize_rewards=gaussian,
    )
    rate = {"tabular": 0.05, "conv": 5e-3}.get(head, 1e-3)
    hypers = PPOHypers(
        learning_rate=rate,
        critic_learning_rate=rate,
        classifier_learning_rate=rate,
        lr_end_fraction=0.1,
        max_grad_norm=0.5,
        # Without a return to keep, a larger weight sacrifices an expert.
        beta=0.5 if min_return is None else 2.5,
        gamma=0.99,
        ent_coef=0.002 if gaussian else 0.02,
        temperature=0.15,
        init_temperature=0.5,
        min_return=min_return,
    )
    if head == "conv":
        # MinAtar is learned by many large optimiser steps, on small minibatches.
        train = dataclasses.replace(
            train,
            hidden_sizes=(64,),
            activation="relu",
            envs_per_expert=32,
            num_epochs=2,
            num_minibatches=32,
        )
    return train, hypers

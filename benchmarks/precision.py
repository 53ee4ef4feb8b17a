"""Errors of exact returns where a product of matrices rounds its factors, as accelerators do.

Unless full precision is asked for, a TPU rounds the factors of a product to bfloat16, and a GPU to
TF32. Both are emulated here on any device: in the program that JAX traces for the accelerator, the
factors are rounded before each product that does not ask for more. The truth is a loop in NumPy, in
double precision, over the steps of an episode on the paper's grid.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float
from rich.console import Console

from ape_jax.core import platform, tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs import GridWorld
from benchmarks import common

MANTISSA_BITS: dict[platform.PlatformName, tuple[str, int]] = {
    "tpu": ("bfloat16", 7),
    "gpu": ("TF32", 10),
}
"""Format of the factors of a product on each platform, and the bits of its mantissa."""
NUM_POLICIES = 64
COLUMNS = {
    "platform": "platform",
    "products in": "precision",
    "largest error": "largest_error",
    "without full precision": "largest_error_at_default_precision",
}


def with_rounded_factors(
    function: Callable, name: platform.PlatformName, *, every_product: bool = False
) -> Callable:
    """The same function of arrays, as it computes on another platform.

    With ``every_product``, products that ask for full precision are rounded, too.
    """
    bits = MANTISSA_BITS[name][1]

    def product(equation, *factors):
        factors = [jax.lax.reduce_precision(x, 8, bits) for x in factors]
        return equation.primitive.bind(*factors, **equation.params)

    def rounded(equation):
        precision = equation.params.get("precision")
        highest = precision is not None and set(precision) == {jax.lax.Precision.HIGHEST}
        if equation.primitive.name == "dot_general" and (every_product or not highest):
            avals = [x.aval for x in equation.invars]
            call = jax.make_jaxpr(jax.jit(lambda *x: product(equation, *x)))(*avals).eqns[0]
            return call.replace(invars=equation.invars, outvars=equation.outvars)
        params = {key: inside(value) for key, value in equation.params.items()}
        return equation.replace(params=params)

    def inside(value):
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(inside(x) for x in value)
        if isinstance(value, ClosedJaxpr):
            equations = [rounded(equation) for equation in value.jaxpr.eqns]
            return value.replace(jaxpr=value.jaxpr.replace(eqns=equations))
        return value

    def computed(*arguments):
        with platform.tracing_for(name):
            program = inside(jax.make_jaxpr(jax.jit(function))(*arguments))
        (result,) = jaxpr_as_fun(program)(*arguments)
        return result

    return computed


def true_return(mdp: FiniteMDP, policy: Float[Array, "S A"]) -> float:
    """J(π) by a loop in double precision."""
    alive = ~np.asarray(mdp.terminal)
    policy, mass = np.asarray(policy, np.float64), np.asarray(mdp.start, np.float64)
    rewards = (policy * np.asarray(mdp.reward)).sum(-1) * alive
    moves = np.einsum("sa,sat->st", policy, np.asarray(mdp.transition, np.float64))
    total = 0.0
    for _ in range(mdp.horizon):
        total += mass @ rewards
        mass = (mass * alive) @ moves
    return total


def measure(num_policies: int) -> dict:
    """Errors on each platform, over the uniform policy and random ones of all degrees."""
    mdp = GridWorld().finite_mdp()
    shape = (num_policies, mdp.num_states, mdp.num_actions)
    scales = jnp.linspace(0.0, 4.0, num_policies)[:, None, None]
    policies = jax.nn.softmax(scales * jax.random.normal(jax.random.key(0), shape))
    truth = np.array([true_return(mdp, policy) for policy in policies])

    def returns(policies):
        return jax.vmap(tabular.policy_return, (None, 0))(mdp, policies)

    rows = []
    for name, (precision, _) in MANTISSA_BITS.items():
        ours = np.asarray(with_rounded_factors(returns, name)(policies))
        rounded = with_rounded_factors(returns, name, every_product=True)(policies)
        rows.append(
            {
                "platform": name,
                "precision": precision,
                "largest_error": float(np.abs(ours - truth).max()),
                "largest_error_at_default_precision": float(np.abs(rounded - truth).max()),
                "uniform_policy": float(ours[0]),
                "uniform_policy_at_default_precision": float(rounded[0]),
            }
        )
    return {"device": common.device(), "policies": num_policies, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    out, console = parser.parse_args(arguments).out, Console()
    result = measure(NUM_POLICIES)
    common.write(result, out)
    console.print(common.table_of(result["rows"], COLUMNS, "Exact returns on the paper's grid"))
    console.print(f"wrote {out}", highlight=False)


if __name__ == "__main__":
    main()

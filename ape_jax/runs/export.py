"""Export of a run's policies for programs that do not have this package.

It makes three files: the parameters as safetensors, the forward pass as ``jax.export`` writes it,
and a JSON description of both.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ape_jax._version import __version__
from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.runs.checkpoint import named
from ape_jax.types import Params

PARAMETERS, FORWARD, DESCRIPTION = "parameters.safetensors", "policies.jax", "description.json"
PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms on which the exported forward pass runs."""


def export_run(out: Path, config: RunConfig, task: Task, heads: Params) -> dict:
    """Write the expert heads [K, E, …] of a run, and the function from observations to policies.

    Files that ``out`` already holds are replaced. The output is the description, as it is written.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(x) for name, x in named(heads).items()}
    structure = jax.tree.structure(heads)
    networks = task.networks
    dtype = jnp.float32 if networks.num_states is None else jnp.int32

    def forward(of_seed: dict[str, jax.Array], observations: jax.Array) -> dict[str, jax.Array]:
        heads = jax.tree.unflatten(structure, [of_seed[name] for name in arrays])
        return jax.vmap(lambda x: networks.distributions(heads, x)._asdict())(observations)

    (batch,) = jax_export.symbolic_shape("N")
    shapes = (
        {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in arrays.items()},
        jax.ShapeDtypeStruct((batch, *networks.observation_shape), dtype),
    )
    exported = jax_export.export(jax.jit(forward), platforms=PLATFORMS)(*shapes)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    description = {
        "ape_jax": __version__,
        "env": config.train.env,
        "env_param": list(config.train.env_param),
        "seeds": config.seeds,
        "first_seed": config.first_seed,
        "num_experts": networks.num_experts,
        "discrete_actions": networks.action_bounds is None,
        "action_bounds": networks.action_bounds,
        "parameters": {name: [x.dtype.name, list(x.shape)] for name, x in arrays.items()},
        "forward": {
            "platforms": list(PLATFORMS),
            "arguments": [
                "parameters of one seed, by name, each without its leading axis",
                f"observations, {exported.in_avals[-1].str_short()}",
            ],
            "results": {name: shape.str_short() for name, shape in outputs.items()},
        },
    }
    forward_pass = exported.serialize()
    (out / PARAMETERS).write_bytes(save(arrays))
    (out / FORWARD).write_bytes(forward_pass)
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return description

"""The mathematics of the paper: pure functions of arrays, for one state or one trajectory.

Nothing here knows of environments, networks or optimisers; callers add batch axes by ``jax.vmap``.
"""

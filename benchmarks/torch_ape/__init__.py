"""PG-APE on the gridworld in PyTorch, to compare speed with.

``eager`` is as one first writes it, ``compiled`` as fast as it gets. Both share the world, the
networks and the parts of the loss.
"""

"""PG-APE on the gridworld in PyTorch, for comparison: ``eager`` as one first writes it, and
``compiled`` as fast as it gets. Both share the world, the networks and the form of the losses.
"""

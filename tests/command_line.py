"""The command line as a test gives commands: in this process."""

import pytest

from ape_jax import cli


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as error:
        cli.main([str(argument) for argument in arguments])
    return error.value.code

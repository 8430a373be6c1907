"""The command, called in this process: Python and torch are started once for all tests."""

import os

from click.testing import Result
from typer.testing import CliRunner


def tessera(*arguments):
    """Call the command as a person does; no test may reach a cluster that happens to be there."""
    from cluster.cli import app

    hidden = {name: None for name in os.environ if name.startswith("RAY_")}
    return CliRunner(env=hidden).invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *words):
    """Exit code 2, one line on standard error, and in it what the words say."""
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    return True

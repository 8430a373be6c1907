"""The command, called in this process, where Python and torch are started once, or in its own."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]


def without_ray(**more):
    """The environment, and `more`, of a process that reaches no cluster that is there by chance."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **more}


def started(*arguments):
    """Start the command as a person does, and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *map(str, arguments)],
        cwd=ROOT,
        env=without_ray(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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

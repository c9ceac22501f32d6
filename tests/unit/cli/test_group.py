"""The group: finding commands, help, errors, what is imported."""

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import click
import pytest

from xi_cli.root import BUILT_IN, cli
from xi_core import __version__

HEAVY = (
    "fastapi",
    "uvicorn",
    "torch",
    "transformers",
    "xllamacpp",
    "zmq",
    "pluggy",
    "rich",
    "xi_plugins",
    "xi_server",
    "xi_cli.commands.serve",
    "http.client",
)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["nonsense"]])
def test_help_imports_nothing_heavy(args):
    code = f"""
import sys
sys.argv = ["xi", *{args!r}]
from xi_cli.main import main
try:
    main()
except SystemExit:
    pass
print("IMPORTED", *sys.modules)
"""
    imported = run_python(code).rsplit("IMPORTED ", 1)[1].split()
    assert "xi_cli.main" in imported
    assert [name for name in HEAVY if name in imported] == []


def test_help_of_a_command_needs_no_rich_and_no_plugins():
    code = """
import sys
from xi_cli.root import BUILT_IN, cli
for name in BUILT_IN:
    assert cli.main([name, "--help"], standalone_mode=False) == 0
print("IMPORTED", *sys.modules)
"""
    imported = run_python(code).rsplit("IMPORTED ", 1)[1].split()
    assert [name for name in HEAVY if name in imported and name != "xi_cli.commands.serve"] == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_help_text_of_the_table_is_the_commands_own(name):
    command = cli.get_command(click.Context(cli), name)
    first = command.help.partition("\n")[0]
    assert first == BUILT_IN[name].help
    assert name == command.name


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_help_shows_an_example(xi, name):
    result = xi(name, "--help")
    assert result.exit_code == 0
    assert f"\n    xi {name}" in result.stdout


def test_options_that_are_floats_take_only_those_that_json_has():
    checked = []
    for name in BUILT_IN:
        command = cli.get_command(click.Context(cli), name)
        for option in command.params:
            if option.type.name in ("float", "float range"):
                for value in ("nan", "inf"):
                    with pytest.raises(click.BadParameter):
                        option.process_value(click.Context(command), value)
                checked.append(option.name)
    assert {"temperature", "timeout"} <= set(checked)


def test_entry_points_and_table_agree():
    ours = {point.name: point.value for point in entry_points(group="xi.commands") if point.dist.name == "xi-inference"}
    assert ours == {name: command.path for name, command in BUILT_IN.items()}


def test_version(xi):
    assert xi("--version").stdout == f"xi, version {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("lanch", "did you mean 'launch'?"), ("List", "did you mean 'list'?"), ("zzzz", "commands: serve, launch")]
)
def test_unknown_command(xi, name, hint):
    result = xi(name)
    assert result.exit_code == 2
    assert f"No such command '{name}'; {hint}" in result.stderr


# ---- commands of plugins --------------------------------------------------------------------------


@pytest.fixture
def plugged(monkeypatch, tmp_path):
    """Plugs commands in: name → source of a module that defines `command`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {}
    monkeypatch.setattr(cli, "plugged_in", points)

    def plug(name, source):
        (tmp_path / f"plugged_{name}.py").write_text(source)
        points[name] = EntryPoint(name, f"plugged_{name}:command", "xi.commands")

    return plug


GOOD = "import click\n@click.command()\ndef command():\n    click.echo('from a plugin')\n"


def test_a_plugins_command_shows_and_runs_and_is_imported_only_then(xi, plugged):
    plugged("extra", GOOD)
    shown = xi("--help")
    assert "Commands of plugins:\n  extra  From plugged_extra:command." in shown.stdout
    assert "plugged_extra" not in sys.modules
    assert xi("extra").stdout == "from a plugin\n"
    assert "did you mean 'extra'" in xi("extr").stderr


def test_a_broken_command_is_named_and_stops_nothing(xi, plugged):
    plugged("broken", "raise RuntimeError('no luck')")
    plugged("wrong", "command = 7")
    result = xi("broken")
    assert result.exit_code == 1
    assert result.stderr == "Error: command 'broken' of plugged_broken:command can't be loaded: RuntimeError: no luck\n"
    assert "Traceback" in xi("-v", "broken").stderr
    assert xi("wrong").stderr == "Error: command 'wrong' is int, not a click command\n"
    assert xi("--help").exit_code == 0


def test_an_unexpected_error_is_one_line_and_a_traceback_with_v(xi, plugged):
    plugged("crash", "import click\n@click.command()\ndef command():\n    {}['key']\n")
    result = xi("crash")
    assert (result.exit_code, result.stderr) == (1, "Error: KeyError: 'key'; `xi -v …` shows where\n")
    assert "Traceback (most recent call last)" in xi("-v", "crash").stderr


def test_ctrl_c_in_a_command_is_130(xi, plugged):
    plugged("stop", "import click\n@click.command()\ndef command():\n    raise KeyboardInterrupt\n")
    assert xi("stop").exit_code == 130


def test_a_closed_pipe_is_no_traceback(spawn):
    for args in (["--help"], ["plugins"], ["plugins", "--json"]):
        process = spawn(*args)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=20)
        assert "Traceback" not in err
        assert "Error" not in err

"""The parting of `xi launch`'s command line, and the conversion of values."""

import click
import pytest

from xi_cli.engine_options import convert, part

PARAMS = [
    click.Option(["-r", "--replica"], type=int),
    click.Option(["-en", "--model-engine"]),
    click.Option(["--wait/--no-wait"]),
    click.Option(["--env"], nargs=2),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-3", -3), ("0.9", 0.9), (".5", 0.5), ("1.", 1.0), ("1e-3", 0.001), ("true", True), ("False", False), ("007", "007"),
        ('{"a": 1}', {"a": 1}), ("[1, 2]", [1, 2]), ("{broken", "{broken"), ("null", "null"), ('"quoted"', '"quoted"'), ("1_000", "1_000"),
        ("nan", "nan"), ("inf", "inf"), ("1.0e999", "1.0e999"), ("", ""), ("q4_k_m", "q4_k_m"), ("\ud800", "\ud800"),
    ],
)  # fmt: skip
def test_convert(text, value):
    assert convert(text) == value
    assert type(convert(text)) is type(value)


@pytest.mark.parametrize(
    ("args", "known", "options"),
    [
        ([], [], {}),
        (["name", "-r", "2"], ["name", "-r", "2"], {}),
        (["--replica=2", "-en", "x"], ["--replica=2", "-en", "x"], {}),
        (["--no-wait", "name"], ["--no-wait", "name"], {}),
        (["--env", "A", "--b", "name"], ["--env", "A", "--b", "name"], {}),
        (["--x-y", "2", "name"], ["name"], {"x_y": 2}),
        (["--x", "--y", "-r", "2"], ["-r", "2"], {"x": True, "y": True}),
        (["--x=a=b"], [], {"x": "a=b"}),
        (["--x="], [], {"x": ""}),
        (["--x", "-.5"], [], {"x": -0.5}),
        (["--", "--x"], ["--", "--x"], {}),
        (["-r"], ["-r"], {}),
        (["-"], ["-"], {}),
        (["--help"], ["--help"], {}),
        (["-r2", "name"], ["-r", "2", "name"], {}),
    ],
)
def test_part(args, known, options):
    assert part(PARAMS, args) == (known, options)


@pytest.mark.parametrize("args", [["-x"], ["-ngl", "9"], ["-rx"], ["-x2"], ["--a", "1", "--a=2"], ["--a-b", "1", "--a_b", "2"], ["--=1"]])
def test_part_refuses(args):
    with pytest.raises(click.UsageError):
        part(PARAMS, args)

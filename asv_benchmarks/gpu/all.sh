#!/usr/bin/env bash
# Build, test and measure on a machine with a CUDA GPU, where nothing was installed by hand; under ten minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

step() { printf '\n== %s\n' "$*"; }

step "environment"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
[ -d .venv-gpu ] || python3 -m venv --system-site-packages .venv-gpu
.venv-gpu/bin/pip install -q -e '.[gpu,dev,gpu-compile]' || step "no packages could be installed: what is there is used"
python=.venv-gpu/bin/python

step "kernels compile, nothing spills"
$python -m pytest -q -s tests/test_gpu_compile.py

step "tests on the device"
CI=1 timeout 240 $python -m pytest -q -m gpu -rs

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "compute-sanitizer $tool"
    timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 9 $python -m pytest -q -m gpu tests/test_gpu.py -k "cupy_arrays or numpy"
  done
else
  step "compute-sanitizer is not installed: memcheck and racecheck were NOT run"
fi

step "figures"
timeout 200 $python asv_benchmarks/gpu/bench.py

step "all passed"

#!/bin/sh
# Build the CPU kernel under AddressSanitizer and UndefinedBehaviorSanitizer and run its tests with it.
#   sh csrc/sanitize.sh [PYTHON] [pytest arguments]
set -eu
python=${1:-python}
[ $# -gt 0 ] && shift
root=$(cd "$(dirname "$0")/.." && pwd)
build="$root/build/sanitize"
compiler=${CXX:-c++}
# cmake and ninja may live beside the Python that is used
PATH="$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH"
cmake -S "$root/csrc" -B "$build" -G Ninja -DQRU_SANITIZE=address,undefined -DQRU_CUDA=off \
  -DCMAKE_CXX_COMPILER="$(command -v "$compiler")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/out"
cmake --build "$build"
[ $# -gt 0 ] || set -- tests/ops/test_merge_quantize.py tests/ops/test_merge_dequantize.py tests/ops/test_ties.py \
  tests/ops/test_pack.py tests/ops/test_bad_input.py
cd "$root"
# Leaks are Python's and torch's own; everything else stops the run.
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libstdc++.so)" \
ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 \
QRU_EXTENSION="$(ls "$build"/out/_C*.so)" \
  "$python" -m pytest -q -p no:cacheprovider "$@"

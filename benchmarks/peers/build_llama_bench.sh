#!/bin/sh
# Build llama-bench and llama-perplexity from the source that llama-cpp-python's wheel is built from, with the same options.
#
#   benchmarks/peers/build_llama_bench.sh FOLDER [VERSION]
#
# VERSION is by default that of the llama-cpp-python in .venv. The programs are then in FOLDER/build/bin.
# Takes about ten minutes on one core; a folder that was begun is taken up where it was left.
set -eu

[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
PYTHON=${PYTHON:-$(dirname "$0")/../../.venv/bin/python}
VERSION=${2:-$("$PYTHON" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')}
mkdir -p "$1"
FOLDER=$(cd "$1" && pwd)
ARCHIVE=$FOLDER/llama_cpp_python-$VERSION.tar.gz
SOURCE=$FOLDER/llama_cpp_python-$VERSION/vendor/llama.cpp

# pip runs the build system for the metadata, whose own requirements may come as wheels
[ -f "$ARCHIVE" ] || "$PYTHON" -m pip download --no-deps --no-binary llama-cpp-python \
    --dest "$FOLDER" "llama-cpp-python==$VERSION"
[ -d "$SOURCE" ] || tar -xzf "$ARCHIVE" -C "$FOLDER"

WITHOUT_AMX="-include $(cd "$(dirname "$0")/../../runtime" && pwd)/without_amx.h"
# scikit-build-core builds in release mode too; GGML_NATIVE, on by default, chooses this CPU's instructions
cmake -S "$SOURCE" -B "$FOLDER/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    "-DCMAKE_C_FLAGS=$WITHOUT_AMX ${CFLAGS:-}" "-DCMAKE_CXX_FLAGS=$WITHOUT_AMX ${CXXFLAGS:-}" \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_TOOLS=ON
cmake --build "$FOLDER/build" --target llama-bench llama-perplexity --parallel "$(nproc)"
"$FOLDER/build/bin/llama-bench" --help >/dev/null
"$FOLDER/build/bin/llama-perplexity" --version >/dev/null 2>&1
echo "$FOLDER/build/bin/llama-bench"
echo "$FOLDER/build/bin/llama-perplexity"

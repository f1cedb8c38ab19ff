#!/usr/bin/env bash
# Runs an ONNX bundle on aarch64 under qemu-user, from the aarch64 wheels, and compares it with this machine:
#     benchmarks/peers/aarch64_check.sh BUNDLE [FOLDER]
# Needs Debian's apt-get, dpkg-deb and qemu-user-static; nothing is installed, all of it goes into FOLDER.
# It checks numbers, not speed: emulation is about 70 times slower.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
bundle=$(cd "${1:?usage: aarch64_check.sh BUNDLE [FOLDER]}" && pwd)
folder=${2:-$(mktemp -d)}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
command -v qemu-aarch64-static >/dev/null || { echo "missing: apt-get install qemu-user-static" >&2; exit 2; }

# Debian's Python for arm64, with what it needs, unpacked and not installed.
apt=$folder/apt root=$folder/root site=$folder/site
if [ ! -e "$root/usr/bin/python3" ]; then
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$root"
    : >"$apt/status"
    options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Install-Recommends=false
        -o APT::Sandbox::User=root -o Dir::State="$apt" -o Dir::State::lists="$apt/lists"
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o Debug::NoLocking=true)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install -y --download-only python3 libstdc++6 >/dev/null
    for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi

# onnxruntime reads the kind of CPU from these files; those of the machine below would crash it.
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
cat >"$root/proc/cpuinfo" <<'END'
processor	: 0
Features	: fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1

END
for name in possible present online; do echo 0 >"$root/sys/devices/system/cpu/$name"; done

export QEMU_LD_PREFIX=$root QEMU_CPU=cortex-a76 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
emulated=(qemu-aarch64-static "$root/usr/bin/python3")
version=$("${emulated[@]}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# The runtime's own wheel, built anew, and the aarch64 wheels that it asks for.
rm -rf "$folder/wheel" "$folder/runtime"
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$folder/wheel" "$project/runtime"
wheel=$(echo "$folder"/wheel/*.whl)
"$python" -m pip install -q --no-deps --no-index --target "$folder/runtime" "$wheel"
if [ ! -d "$site" ]; then
    platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)
    "$python" -m pip install -q --target "$site" "${platforms[@]}" --python-version "$version" --implementation cp \
        --only-binary=:all: -c "$project/constraints.txt" "$wheel[onnx]"
fi

echo "this machine" >&2
"$python" "$here/aarch64_tokens.py" run "$bundle" "$folder/here.npz"
echo "aarch64 (${QEMU_CPU}, emulated)" >&2
PYTHONPATH=$folder/runtime:$site "${emulated[@]}" "$here/aarch64_tokens.py" run "$bundle" "$folder/aarch64.npz" "$folder/here.npz"
"$python" "$here/aarch64_tokens.py" compare "$folder/here.npz" "$folder/aarch64.npz"

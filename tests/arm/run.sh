#!/bin/bash
# Published and integer files on an emulated 64-bit ARM processor, compared with x86 and with Keras.
#
#   bash tests/arm/run.sh [PYTHON [CPU ...]]      (make test-arm; PYTHON has the extras tensorflow and litert)
#
# Needs Debian's or Ubuntu's apt with Python 3.11, and root or user namespaces. Everything but qemu goes into .arm/: an
# arm64 Python, unpacked from Debian's packages, and the aarch64 wheels of LiteRT and numpy. Emulation says nothing
# about times. CPU is what QEMU calls a processor, by default one without SME and the newest with all but that. SME is left
# out because of what `bash tests/arm/run.sh python max` shows with QEMU 7.2: LiteRT 2.3.0's int8 convolutions and dense
# layers are other ones then, and other than its own plain kernels. Nobody has said yet whose fault that is.
set -euo pipefail

python=${1:-python}
cpus=("${@:2}")
[ ${#cpus[@]} -gt 0 ] || cpus=(cortex-a76 max,sme=off)
root=$(cd "$(dirname "$0")/../.." && pwd)
arm=$root/.arm
rm -rf "$arm/io"
mkdir -p "$arm"/{debian,site,io} "$arm"/apt/{state/lists/partial,cache/archives/partial}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} KERAS_BACKEND=tensorflow

if ! command -v qemu-aarch64-static > /dev/null; then
    apt-get install -y --no-install-recommends qemu-user-static || { echo "apt-get install qemu-user-static"; exit 1; }
fi

if [ ! -e "$arm/debian/usr/bin/python3.11" ]; then
    touch "$arm/apt/state/status"
    apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$arm/apt/state"
        -o "Dir::State::status=$arm/apt/state/status" -o "Dir::Cache=$arm/apt/cache" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    "${apt[@]}" install -y --download-only --no-install-recommends python3.11 libstdc++6
    for package in "$arm"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$arm/debian"; done
fi

if [ ! -e "$arm/site/ai_edge_litert" ]; then
    platforms=()
    for glibc in 17 24 26 27 28 31 34; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
    "$python" -m pip install --quiet --target "$arm/site" --only-binary=:all: --implementation cp --python-version 3.11 \
        "${platforms[@]}" --platform manylinux2014_aarch64 ai-edge-litert==2.3.0 numpy==1.26.4
fi

# LiteRT reads the processor's features from here, where the emulator shows those of this machine
seq 0 1 | while read -r number; do
    printf 'processor\t: %s\nBogoMIPS\t: 100.00\n' "$number"
    printf 'Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n'
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done > "$arm/cpuinfo"

"$python" "$root/tests/arm/files.py" prepare "$arm/io"
for cpu in "${cpus[@]}"; do
    echo "== aarch64 ($cpu, emulated)"
    as_root=$([ "$(id -u)" = 0 ] || echo "--map-root-user")
    # shellcheck disable=SC2086
    unshare --mount $as_root sh -c "mount --bind '$arm/cpuinfo' /proc/cpuinfo && env -u PYTHONPATH \
        PYTHONHOME='$arm/debian/usr' PYTHONPATH='$arm/site' qemu-aarch64-static -cpu $cpu -L '$arm/debian' \
        '$arm/debian/usr/bin/python3.11' '$root/tests/arm/interpret.py' '$arm/io' aarch64"
    "$python" "$root/tests/arm/files.py" compare "$arm/io"
done

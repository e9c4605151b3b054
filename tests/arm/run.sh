#!/bin/bash
# Published and integer files on an emulated 64-bit ARM processor, compared with x86 and with Keras.
#
#   bash tests/arm/run.sh [PYTHON [CPU ...]]      (make test-arm; PYTHON has the extras tensorflow and litert)
#
# Needs Debian's or Ubuntu's apt with Python 3.11, and root or user namespaces. Everything goes into .arm/: an arm64
# Python, unpacked from Debian's packages, the aarch64 wheels of LiteRT and numpy, and QEMU, if none from 10 on is
# installed. Emulation says nothing about times. CPU is what QEMU calls a processor: by default one of 2018, the newest
# without SME (matrix instructions that LiteRT uses), and with them. QEMU 7.2 computes SME's products of 8-bit integers
# wrongly: `QEMU=qemu-aarch64-static bash tests/arm/run.sh python max` shows it; QEMU 10.0 and 11.1 do not.
set -euo pipefail

python=${1:-python}
cpus=("${@:2}")
[ ${#cpus[@]} -gt 0 ] || cpus=(cortex-a76 max,sme=off max)
root=$(cd "$(dirname "$0")/../.." && pwd)
arm=$root/.arm
rm -rf "$arm/io"
mkdir -p "$arm"/{debian,site,io} "$arm"/apt/{state/lists/partial,cache/archives/partial}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} KERAS_BACKEND=tensorflow

newer() { command -v "$1" > /dev/null && [ "$("$1" --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')" -ge 10 ]; }

qemu=${QEMU:-qemu-aarch64}
if [ -z "${QEMU:-}" ] && ! newer "$qemu"; then
    qemu=$arm/qemu/usr/bin/qemu-aarch64
    if [ ! -e "$qemu" ]; then
        mkdir -p "$arm"/qemu/{state/lists/partial,cache/archives/partial}
        touch "$arm/qemu/state/status"
        echo "deb http://deb.debian.org/debian trixie main" > "$arm/qemu/sources.list"
        apt=(apt-get -qq -o "Dir::State=$arm/qemu/state" -o "Dir::State::status=$arm/qemu/state/status"
            -o "Dir::Cache=$arm/qemu/cache" -o "Dir::Etc::sourcelist=$arm/qemu/sources.list" -o Dir::Etc::sourceparts=-
            -o APT::Sandbox::User=root)
        "${apt[@]}" update
        (cd "$arm/qemu" && "${apt[@]}" download qemu-user && dpkg-deb -x qemu-user_*.deb .)
    fi
fi
"$qemu" --version | head -n 1

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
        PYTHONHOME='$arm/debian/usr' PYTHONPATH='$arm/site' '$qemu' -cpu $cpu -L '$arm/debian' \
        '$arm/debian/usr/bin/python3.11' '$root/tests/arm/interpret.py' '$arm/io' aarch64"
    "$python" "$root/tests/arm/files.py" compare "$arm/io"
done

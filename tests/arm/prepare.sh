#!/usr/bin/env bash
# An arm64 Python with the aarch64 wheels of the runtime's dependencies, in the folder $1, to run under qemu-user.
# Needs apt-get (Debian or Ubuntu) and pip; installs qemu-user-static when it is missing.
set -euo pipefail
here=$(mkdir -p "$1" && cd "$1" && pwd)
pip=${2:-pip}
[ -e "$here/ready-with-onnxruntime" ] && exit 0
command -v qemu-aarch64-static >/dev/null || apt-get install -y -q qemu-user-static
mkdir -p "$here"/{root,lists/partial,debs,wheels,site}
options="-q -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists=$here/lists"
apt-get $options update
(cd "$here/debs" && apt-get $options download python3.11 python3.11-minimal libpython3.11-minimal \
  libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libssl3 libexpat1 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 \
  libuuid1 libcrypt1 libreadline8 libncursesw6 libtinfo6)
for file in "$here"/debs/*.deb; do dpkg -x "$file" "$here/root"; done
platforms=$(for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_17 manylinux2014; do
  echo "--platform ${tag}_aarch64"; done)
"$pip" download -q --only-binary=:all: --python-version 3.11 $platforms -d "$here/wheels" -c constraints.txt \
  numba numpy onnx
"$pip" download -q --only-binary=:all: --no-deps --python-version 3.11 $platforms -d "$here/wheels" -c constraints.txt \
  onnxruntime
for wheel in "$here"/wheels/*.whl; do (cd "$here/site" && python3 -m zipfile -e "$wheel" .); done
# onnxruntime asks which processor this is and crashes over the x86 answer that qemu passes on.
mkdir -p "$here/root/proc"
for processor in 0 1; do
  printf 'processor\t: %d\nFeatures\t: fp asimd fphp asimdhp asimdrdm asimddp\nCPU implementer\t: 0x41\n' $processor
  printf 'CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done >"$here/root/proc/cpuinfo"
touch "$here/ready-with-onnxruntime"

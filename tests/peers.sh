#!/bin/bash
# Brings what the tests compare with: other engines, image tools, a registry, kernel headers. As root on Debian
# or Ubuntu what is missing is installed; elsewhere it is named, and the tests that need it skip and say so.
set -euo pipefail

packages=(
    acpica-tools apparmor attr binutils-aarch64-linux-gnu binutils-riscv64-linux-gnu bubblewrap buildah busybox-static criu
    crun dbus docker-registry docker.io e2fsprogs erofs-utils fio fuse-overlayfs gcc iperf3 iproute2 kmod libc6-dev libcap2-bin
    libseccomp2 linux-libc-dev mmdebstrap mount nftables passt podman procps qemu-system-common
    qemu-system-x86 qemu-user-static qemu-utils runc skopeo slirp4netns strace stress-ng systemd uidmap umoci zstd
)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed, tests that need them will skip: ${missing[*]}" >&2
    echo "hint: apt-get install ${missing[*]}" >&2
    exit 0
fi

# Installing a package must not start its daemon: the tests start their own, on their own ports and roots.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
for package in "${missing[@]}"; do
    # One at a time: a peer that this release does not have costs its own tests and no others.
    apt-get install -qq -y --no-install-recommends "$package" >/dev/null ||
        echo "could not be installed, its tests will skip: $package" >&2
done

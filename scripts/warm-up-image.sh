#!/bin/sh
# Builds the image `warm-up` for the benchmarks into a state directory, unless it is there already: nginx as a cache in
# front of a slow origin, and a job that computes, from Debian's packages.
#
#   scripts/warm-up-image.sh REVEILLE STATE_DIR CACHE_DIR
set -eu

reveille=$1
state=$2
cache=$3
here=$(cd "$(dirname "$0")/.." && pwd)
packages="nginx libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g busybox-static perl-base qemu-guest-agent libglib2.0-0
    libnuma1 libudev1 liburing2"
triplet=x86_64-linux-gnu

fail() {
    echo "warm-up-image.sh: $*" >&2
    exit 1
}
for tool in dpkg-deb apt-get; do
    command -v $tool >/dev/null || fail "$tool is missing; this needs a Debian system"
done
mark=$(cat "$here"/scripts/warm-up-image.sh "$here"/bench/warm-up/etc/inittab "$here"/bench/warm-up/etc/nginx.conf \
    "$here"/bench/warm-up/etc/reveille/* "$here"/bench/warm-up/srv/* \
    "$here"/crates/reveille-vm/src/image/stage1.sh "$here"/crates/reveille-vm/src/image/refresh | sha256sum)
if [ "$(cat "$state/warm-up-image.mark" 2>/dev/null)" = "$mark" ] &&
    "$reveille" image verify warm-up --state-dir "$state" >/dev/null 2>&1; then
    exit 0
fi
mkdir -p "$state" "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
echo "building the image warm-up from Debian packages"

for package in $packages; do
    file=$(apt-get --print-uris download "$package" | awk '{ print $2; exit }')
    [ -n "$file" ] || fail "apt offers no $package; try apt-get update"
    [ -f "$cache/$file" ] || (cd "$cache" && apt-get -q -q -o APT::Sandbox::User=root download "$package")
    dpkg-deb -x "$cache/$file" "$work/root"
done
root=$work/root
# All of it is memory of the guest: what nobody here reads goes.
rm -rf "$root/usr/share" "$root/usr/lib/$triplet/gconv" "$root/usr/lib/systemd" "$root/lib/systemd" \
    "$root/usr/lib/locale" "$root/etc/init.d" "$root/usr/lib/$triplet/perl-base/unicore"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/srv" "$root/sbin" "$root/etc/reveille" \
    "$root/bin"
[ -e "$root/bin/busybox" ] || ln -s ../usr/bin/busybox "$root/bin/busybox"
ln -sf busybox "$root/bin/sh"
ln -sf ../bin/busybox "$root/sbin/init"
ln -sf ../bin/busybox "$root/sbin/hwclock"
for applet in mkdir cat; do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
# Its workers are whoever is called nobody.
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
cp "$here/bench/warm-up/etc/inittab" "$here/bench/warm-up/etc/nginx.conf" "$root/etc/"
for file in etc/reveille/warm-up srv/prepare srv/origin srv/table; do
    install -m 755 "$here/bench/warm-up/$file" "$root/$file"
done
find "$root" -type d -exec chmod 755 {} +

"$reveille" image build warm-up --root "$root" --memory-mib 256 --package-cache "$cache" --state-dir "$state"
printf '%s\n' "$mark" >"$state/warm-up-image.mark"

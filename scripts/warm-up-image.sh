#!/bin/sh
# Builds the image `warm-up` for the benchmarks into a state directory, unless it is there already: nginx as a cache in
# front of a slow origin, and a job that computes, from Debian's packages.
#
#   scripts/warm-up-image.sh REVEILLE STATE_DIR CACHE_DIR
set -eu

name=warm-up
packages="nginx libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g busybox-static perl-base qemu-guest-agent libglib2.0-0
    libnuma1 libudev1 liburing2"
tools=
# shellcheck source=scripts/debian-root.sh
. "$(dirname "$0")/debian-root.sh"
own=$here/bench/warm-up
begin "$own/etc/inittab" "$own/etc/nginx.conf" "$own"/etc/reveille/* "$own"/srv/*

# All of it is memory of the guest: what nobody here reads goes.
triplet=x86_64-linux-gnu
rm -rf "$root/usr/share" "$root/usr/lib/$triplet/gconv" "$root/usr/lib/systemd" "$root/lib/systemd" \
    "$root/usr/lib/locale" "$root/etc/init.d" "$root/usr/lib/$triplet/perl-base/unicore"
applets mkdir cat
# Its workers are whoever is called nobody.
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
cp "$own/etc/inittab" "$own/etc/nginx.conf" "$root/etc/"
for file in etc/reveille/warm-up srv/prepare srv/origin srv/table; do
    install -m 755 "$own/$file" "$root/$file"
done
find "$root" -type d -exec chmod 755 {} +

build --root "$root" --memory-mib 256

#!/bin/sh
# Lays out the root of the demo image in OUTDIR from Debian packages: busybox-static, perl-base, qemu-guest-agent and
# the libraries that these need. Needs apt-get and dpkg-deb, but neither root nor anything installed from these packages.
#
#   demo/build-root.sh OUTDIR [CACHEDIR]
#
# OUTDIR must not exist or be empty. Packages are kept in CACHEDIR (default: a temporary directory).
set -eu

packages="busybox-static perl-base libc6 libcrypt1 qemu-guest-agent libglib2.0-0 libpcre2-8-0 libnuma1 libudev1 liburing2"
triplet=x86_64-linux-gnu
perl_modules="Carp.pm Config.pm Config_git.pl Errno.pm Exporter.pm Socket.pm XSLoader.pm auto/Socket/Socket.so
    constant.pm overloading.pm strict.pm vars.pm warnings.pm warnings/register.pm"

fail() {
    echo "build-root.sh: $*" >&2
    exit 1
}

[ $# -ge 1 ] && [ $# -le 2 ] || {
    echo "usage: $0 OUTDIR [CACHEDIR]" >&2
    exit 2
}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
[ -z "$(ls -A "$out")" ] || fail "$out is not empty"
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || fail "$tool is missing; this needs a Debian system"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
if [ $# = 2 ]; then
    mkdir -p "$2"
    cache=$(cd "$2" && pwd)
else
    cache=$work/packages
    mkdir "$cache"
fi

# The path in the cache of the version of a package that apt offers; downloads it when it is not there.
package_file() {
    file=$(apt-get --print-uris download "$1" 2>"$work/apt" | awk '{ print $2; exit }')
    if [ -z "$file" ]; then
        # Without package lists an earlier download still serves.
        file=$(cd "$cache" && ls -t "$1"_*.deb 2>/dev/null | head -n 1) || true
        [ -n "$file" ] || fail "apt offers no $1: $(tail -n 1 "$work/apt"); try apt-get update"
    fi
    if [ ! -f "$cache/$file" ]; then
        mkdir -p "$work/download"
        (cd "$work/download" && apt-get -q -q -o APT::Sandbox::User=root download "$1" >"$work/apt" 2>&1) ||
            fail "downloading $1: $(tail -n 1 "$work/apt")"
        mv "$work/download/$file" "$cache/$file"
    fi
    echo "$cache/$file"
}

mkdir "$work/unpacked"
for package in $packages; do
    file=$(package_file "$package")
    dpkg-deb -x "$file" "$work/unpacked" || fail "$file cannot be unpacked; remove it and try again"
done

# Copies a file that the packages hold at one of several places (before and after the merge of / and /usr).
#   take DESTINATION SOURCE...
take() {
    destination=$out/$1
    shift
    for source in "$@"; do
        if [ -e "$work/unpacked/$source" ]; then
            mkdir -p "$(dirname "$destination")"
            cp -L "$work/unpacked/$source" "$destination"
            return
        fi
    done
    fail "the packages hold no $1"
}

take bin/busybox bin/busybox usr/bin/busybox
take usr/bin/perl usr/bin/perl
take usr/sbin/qemu-ga usr/sbin/qemu-ga
for library in libc.so.6 libm.so.6 libcrypt.so.1 libglib-2.0.so.0 libgmodule-2.0.so.0 libpcre2-8.so.0 libnuma.so.1 \
    libudev.so.1 liburing.so.2; do
    take lib/$triplet/$library lib/$triplet/$library usr/lib/$triplet/$library
done
take lib64/ld-linux-x86-64.so.2 lib64/ld-linux-x86-64.so.2 usr/lib64/ld-linux-x86-64.so.2 \
    lib/$triplet/ld-linux-x86-64.so.2 usr/lib/$triplet/ld-linux-x86-64.so.2
for module in $perl_modules; do
    take usr/lib/$triplet/perl-base/$module usr/lib/$triplet/perl-base/$module
done

mkdir -p "$out/sbin" "$out/etc" "$out/srv"
ln -s ../bin/busybox "$out/sbin/init"
ln -s busybox "$out/bin/sh"
# The agent has it set the machine's own clock.
ln -s ../bin/busybox "$out/sbin/hwclock"
cp "$here/root/etc/inittab" "$out/etc/inittab"
cp "$here/root/srv/demo" "$out/srv/demo"

# The same modes wherever this ran, so that the same packages give the same image.
find "$out" -type d -exec chmod 755 {} +
find "$out" -type f -exec chmod 644 {} +
chmod 755 "$out/bin/busybox" "$out/usr/bin/perl" "$out/usr/sbin/qemu-ga" "$out/srv/demo" "$out/lib64/ld-linux-x86-64.so.2"

# Sourced by the scripts that build an image of a benchmark from Debian's packages, which are called with REVEILLE STATE_DIR
# CACHE_DIR. They set `name`, `packages` and `tools`, and call `begin` with the files that the image is made of, which ends the
# script if it is there already; `begin` leaves the unpacked packages in `$root`, with busybox as the shell.
reveille=$1
state=$2
cache=$3
here=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "$name-image.sh: $*" >&2
    exit 1
}

begin() {
    for tool in dpkg-deb apt-get $tools; do
        command -v "$tool" >/dev/null || fail "$tool is missing; this needs a Debian system"
    done
    mark=$(cat "$0" "$here/scripts/debian-root.sh" "$@" "$here/crates/reveille-vm/src/image/stage1.sh" \
        "$here/crates/reveille-vm/src/image/refresh" | sha256sum)
    if [ "$(cat "$state/$name-image.mark" 2>/dev/null)" = "$mark" ] &&
        "$reveille" image verify "$name" --state-dir "$state" >/dev/null 2>&1; then
        exit 0
    fi
    mkdir -p "$state" "$cache"
    cache=$(cd "$cache" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    echo "building the image $name from Debian packages"
    for package in $packages; do
        file=$(apt-get --print-uris download "$package" | awk '{ print $2; exit }')
        [ -n "$file" ] || fail "apt offers no $package; try apt-get update"
        [ -f "$cache/$file" ] || (cd "$cache" && apt-get -q -q -o APT::Sandbox::User=root download "$package")
        dpkg-deb -x "$cache/$file" "$work/root"
    done
    root=$work/root
    mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/srv" "$root/sbin" "$root/bin" \
        "$root/etc/reveille"
    [ -e "$root/bin/busybox" ] || ln -s ../usr/bin/busybox "$root/bin/busybox"
    ln -sf busybox "$root/bin/sh"
    ln -sf ../bin/busybox "$root/sbin/init"
    ln -sf ../bin/busybox "$root/sbin/hwclock"
}

# Commands that busybox stands in for where no package has them.
applets() {
    for applet in "$@"; do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
}

# With the arguments of `reveille image build` behind the name.
build() {
    "$reveille" image build "$name" "$@" --package-cache "$cache" --state-dir "$state"
    printf '%s\n' "$mark" >"$state/$name-image.mark"
}

#!/bin/sh
# Installs the Debian packages that a command of this project needs and the host lacks.
#
#   scripts/setup.sh demo     to run the demo
#   scripts/setup.sh tap      to run it through tap devices
#   scripts/setup.sh test     to run the tests as well
#   scripts/setup.sh stores   the object stores of the tests
set -eu

purpose=${1:-demo}

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

# Package a line, with a file that tells that it is there.
wanted_demo="qemu-system-x86:qemu-system-x86_64 busybox-static:/bin/busybox bind9-dnsutils:dig curl:curl gcc:cc libc6-dev:/usr/include/stdio.h"
wanted_tap="iproute2:ip nftables:/usr/sbin/nft"
wanted_servers="knot:/usr/sbin/knotd nsd:/usr/sbin/nsd bind9:/usr/sbin/named unbound:/usr/sbin/unbound knot-module-dnstap:/usr/share/doc/knot-module-dnstap fstrm-bin:fstrm_capture dnsperf:dnsperf openssl:openssl g++:c++"
wanted_test="$wanted_demo $wanted_tap $wanted_servers knot-dnsutils:kdig cpio:cpio procps:ps kmod:modinfo bind9-utils:dnssec-signzone util-linux:setpriv nodejs:node npm:npm python3-venv:python3 skopeo:skopeo docker-registry:docker-registry"

case $purpose in
demo) wanted=$wanted_demo ;;
tap) wanted="$wanted_demo $wanted_tap" ;;
test | stores) wanted=$wanted_test ;;
*) fail "say demo, tap, test or stores" ;;
esac

command -v cargo >/dev/null || fail "Rust is missing: install it from https://rustup.rs, then try again"

missing=
for entry in $wanted; do
    package=${entry%%:*}
    sign=${entry#*:}
    case $sign in
    /*) [ -e "$sign" ] || missing="$missing $package" ;;
    *) command -v "$sign" >/dev/null || missing="$missing $package" ;;
    esac
done

# Object stores that the tests start: S3 and Azure Blob, below target/, once. Without them their tests are not run.
object_stores() {
    stores=$(dirname "$0")/../target/object-stores
    mkdir -p "$stores"
    if [ ! -e "$stores/venv/bin/moto_server" ]; then
        { python3 -m venv "$stores/venv" && "$stores/venv/bin/pip" install -q 'moto[server]==5.1.*'; } ||
            echo "setup.sh: moto is not installed; the tests over S3 will not run" >&2
    fi
    if [ ! -e "$stores/node_modules/.bin/azurite-blob" ]; then
        npm install --silent --no-audit --no-fund --prefix "$stores" azurite@3 ||
            echo "setup.sh: azurite is not installed; the tests over Azure Blob will not run" >&2
    fi
}

if [ "$purpose" = stores ]; then
    object_stores
    exit 0
fi
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || fail "this is no Debian system; install yourself:$missing"
root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "as root: apt-get install --no-install-recommends$missing"
    root=sudo
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# Old package lists name versions that are gone: fresh ones first.
$root apt-get -q -q update
# The tests start servers of their own, on free ports: those of the packages are not to run, now or after a boot.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$root rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null
    $root chmod 755 $policy
fi
# shellcheck disable=SC2086
$root apt-get -q -q -y install --no-install-recommends $missing >/dev/null
if command -v systemctl >/dev/null; then
    for package in $missing; do
        case $package in
        knot | nsd | unbound) $root systemctl --quiet disable "$package" || true ;;
        bind9) $root systemctl --quiet disable named || true ;;
        esac
    done
fi

#!/bin/sh
# The demo through tap devices, in a network namespace of its own: `make demo NET=tap`, as root.
#
# The namespace is a host beside this one, joined to it by a pair of interfaces: its services are reached from here at
# their stable addresses, its DNS and API as on any host from inside (ip netns exec reveille-demo ...).
set -eu

cd "$(dirname "$0")/.."
space=reveille-demo
pool=10.64.0.0/16
here=198.18.64.1
there=198.18.64.2

[ "$(id -u)" = 0 ] || {
    echo "tap.sh: run as root: it makes a network namespace and tap devices" >&2
    exit 1
}
command -v ip >/dev/null || {
    echo "tap.sh: apt-get install iproute2" >&2
    exit 1
}
if [ -e "/run/netns/$space" ]; then
    # Left by a demo that was killed; one that runs is left alone.
    [ -z "$(ip netns pids $space)" ] || {
        echo "tap.sh: the namespace $space is in use: a demo runs already, or its guests do" >&2
        exit 1
    }
    ip netns del $space
fi
demo=
end() {
    # To the end, also when it is told twice: make and the terminal both tell it.
    trap '' HUP INT TERM
    trap - EXIT
    if [ -n "$demo" ]; then
        kill "$demo" 2>/dev/null || true
        wait "$demo" || true
    fi
    ip netns del $space
}
trap end EXIT
trap 'end; exit 1' HUP INT TERM
ip netns add $space
ip -n $space link set lo up
ip link add rvdemo type veth peer name rvdemo netns $space
ip address add $here/30 dev rvdemo
ip link set rvdemo up
ip -n $space address add $there/30 dev rvdemo
ip -n $space link set rvdemo up
ip -n $space route add default via $here
ip netns exec $space sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
ip route replace $pool via $there

mkdir -p target/demo-tap
sed -e 's|\.\./target/demo"|demo"|' demo/reveille.toml >target/demo-tap/reveille.toml
cat >>target/demo-tap/reveille.toml <<EOF

[net]
mode = "tap"

[relay]
pool = "$pool"
EOF
echo "from this host: curl http://10.64.0.1:8080/ and ip netns exec $space dig @127.0.0.1 -p 5300 hello.vm.test"
REVEILLE_DEMO_STATE=target/demo-tap/demo REVEILLE_DEMO_CONFIG=target/demo-tap/reveille.toml \
    REVEILLE_DEMO_IN="ip netns exec $space" demo/run.sh &
demo=$!
wait "$demo"

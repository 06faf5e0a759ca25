#!/bin/sh
# The demo through tap devices, in a network namespace of its own: `make demo NET=tap`, as root.
#
# The namespace is a host beside this one, joined to it by a pair of interfaces: its services are reached from here at
# their stable addresses of both families, and its DNS at 198.18.64.2; its API from inside (ip netns exec reveille-demo
# reveille ...).
set -eu

cd "$(dirname "$0")/.."
space=reveille-demo
pool=10.64.0.0/16
pool6=fd64:5245:56::/64
here=198.18.64.1
there=198.18.64.2
here6=fd64:5245:57::1
there6=fd64:5245:57::2

[ "$(id -u)" = 0 ] || {
    echo "tap.sh: run as root: it makes a network namespace and tap devices" >&2
    exit 1
}
scripts/setup.sh tap
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
    # A guest that did not sleep in time is not left to run in a namespace without a name.
    for pid in $(ip netns pids $space 2>/dev/null); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns del $space 2>/dev/null || true
    # The pair of interfaces goes with the namespace, by and by; its routes go with it.
    ip link del rvdemo 2>/dev/null || true
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
# A host without IPv6 has the demo without it.
if [ -e /proc/sys/net/ipv6/conf/rvdemo ]; then
    ip address add $here6/64 dev rvdemo nodad
    ip -n $space address add $there6/64 dev rvdemo nodad
    ip -n $space route add default via $here6
    ip netns exec $space sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    ip route replace $pool6 via $there6
else
    pool6=
fi

mkdir -p target/demo-tap
sed -e 's|\.\./target/demo"|demo"|' demo/reveille.toml >target/demo-tap/reveille.toml
cat >>target/demo-tap/reveille.toml <<END

[net]
mode = "tap"

[relay]
pool = "$pool"
pool6 = "$pool6"

[dns]
listen = ["$there:5300", "127.0.0.1:5300"]
END
echo "from this host: dig @$there -p 5300 hello.vm.test and curl http://10.64.0.1:8080/"
[ -z "$pool6" ] || echo "                dig @$there -p 5300 hello.vm.test AAAA and curl 'http://[fd64:5245:56::a40:1]:8080/'"
REVEILLE_DEMO_STATE=target/demo-tap/demo REVEILLE_DEMO_CONFIG=target/demo-tap/reveille.toml \
    REVEILLE_DEMO_IN="ip netns exec $space" demo/run.sh &
demo=$!
wait "$demo"

#!/.reveille/busybox sh
# The boot stage that every image starts with: PID 1 until the root's own init is run in its place.
# The first line on the console tells whoever watches that this host can run a guest's user space.
echo 'reveille: user space reached'

PATH=/.reveille/bin
. /.reveille/boot.conf

mount -a -T /.reveille/fstab
mkdir -p /dev/pts /dev/shm
mount -a -T /.reveille/fstab.dev

# Loads a module after those that it needs; `modules_*` are their file names in that order.
load() {
    eval "set -- \$modules_$1"
    for module; do
        [ -e "/sys/module/$module" ] || insmod "/.reveille/modules/$module.ko"
    done
}

load virtio_mmio
for device in /sys/bus/pci/devices/*; do
    [ -e "$device" ] && load virtio_pci
    break
done
for device in /sys/bus/virtio/devices/*/device; do
    [ -e "$device" ] || continue
    read -r kind <"$device"
    case $kind in
    0x0001) load virtio_net ;;
    0x0002)
        load virtio_blk
        # These only where the image has a disk.
        load crc32c_generic
        load ext4
        ;;
    0x0003) load virtio_console ;;
    0x0004) load virtio_rng ;;
    0x0005) load virtio_balloon ;;
    esac
done

address=10.0.2.15/24
gateway=10.0.2.2
address6=
gateway6=
nameserver=10.0.2.3
hostname=localhost
read -r words </proc/cmdline
for word in $words; do
    value=${word#*=}
    case $word in
    reveille.address=*) address=$value ;;
    reveille.gateway=*) gateway=$value ;;
    reveille.address6=*) address6=$value ;;
    reveille.gateway6=*) gateway6=$value ;;
    reveille.nameserver=*) nameserver=$value ;;
    reveille.hostname=*) hostname=$value ;;
    esac
done

echo "$hostname" >/proc/sys/kernel/hostname
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip address add "$address" dev eth0
    ip link set eth0 up
    case $address in
    # Nobody else is on the link: the gateway is reached although it is in no network of the guest's.
    */32) ip route add "$gateway" dev eth0 ;;
    esac
    [ -z "$gateway" ] || ip route add default via "$gateway"
    if [ -n "$address6" ]; then
        # In use at once: nobody else can have it.
        echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
        ip -6 address add "$address6" dev eth0
        ip -6 route add default via "$gateway6" dev eth0
    fi
fi
[ -z "$nameserver" ] || [ -e /etc/resolv.conf ] || [ -L /etc/resolv.conf ] ||
    echo "nameserver $nameserver" >/etc/resolv.conf

# The ports of the guest's agent and of the refresher, by name, if there is no udev that would see to it. The kernel
# finds them a moment after it has loaded their driver.
for try in 1 2 3 4 5 6 7 8 9; do
    [ -e /sys/class/virtio-ports ] || break
    for port in /sys/class/virtio-ports/*; do
        [ -e "$port/name" ] && break 2
    done
    sleep 0.01
done
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] || continue
    read -r name <"$port/name"
    mkdir -p /dev/virtio-ports
    ln -sf "../${port##*/}" "/dev/virtio-ports/$name"
done
port=/dev/virtio-ports/reveille.refresh

if [ -n "$root" ]; then
    # The root is on the disk: it takes the place of everything here.
    mkdir /.reveille/root
    mount "$root" /.reveille/root
    mount -o move /proc /.reveille/root/proc
    # It lives in the new root, where the devices will be. Its program is gone with everything here, so it has to have been
    # started by then.
    if [ -e $port ]; then
        chroot /.reveille/root /proc/self/fd/3 3</.reveille/refresh <>$port >/dev/null 2>&1 &
        for try in 1 2 3 4 5 6 7 8 9; do
            [ "/.reveille/root/proc/$!/exe" -ef /.reveille/refresh ] && break
            sleep 0.05
        done
    fi
    for directory in dev sys run; do
        mount -o move "/$directory" "/.reveille/root/$directory"
    done
    echo "reveille: starting $init from $root"
    exec switch_root /.reveille/root "$init"
fi
[ ! -e $port ] || /.reveille/refresh <>$port >/dev/null 2>&1 &

# The root may have an /init of its own, whose place this script took.
rm /init
if [ -e /.reveille/root-init ] || [ -L /.reveille/root-init ]; then
    mv /.reveille/root-init /init
fi

unset PATH kind device root directory port try name word words value address gateway address6 gateway6 nameserver hostname module PWD OLDPWD
echo "reveille: starting $init"
exec "$init"

#!/bin/sh
# Builds the image `postgres` for the benchmarks into a state directory, unless it is there already: PostgreSQL from
# Debian's packages on a disk of its own, a page that is read from it, and a table to load. Needs root, to prepare the database.
#
#   scripts/postgres-image.sh REVEILLE STATE_DIR CACHE_DIR
set -eu

name=postgres
packages="postgresql-15 postgresql-client-15 libpq5 libc6 libgcc-s1 libstdc++6 libcrypt1 libicu72 libxml2 liblzma5
    libzstd1 liblz4-1 zlib1g libssl3 libpam0g libaudit1 libcap-ng0 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2
    libkrb5support0 libkeyutils1 libldap-2.5-0 libsasl2-2 libsystemd0 libgcrypt20 libgpg-error0 libcap2 libselinux1
    libgnutls30 libp11-kit0 libidn2-0 libunistring2 libtasn1-6 libnettle8 libhogweed6 libgmp10 libffi8 libpcre2-8-0
    libuuid1 libreadline8 libtinfo6 tzdata busybox-static perl-base qemu-guest-agent libglib2.0-0 libnuma1
    libudev1 liburing2"
tools="mkfs.ext4 chroot"
disk_mib=768
# shellcheck source=scripts/debian-root.sh
. "$(dirname "$0")/debian-root.sh"
[ "$(id -u)" = 0 ] || fail "run as root: the database is prepared by a user of its own"
own=$here/bench/postgres
begin "$own"/*

rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root/usr/lib/postgresql/15/lib/bitcode"
mkdir -p "$root/var/lib/postgresql"
printf 'root:x:0:0::/:/bin/sh\npostgres:x:100:100::/var/lib/postgresql:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\npostgres:x:100:\n' >"$root/etc/group"
cp "$own/inittab" "$root/etc/inittab"
for file in prepare postgres page; do
    install -m 755 "$own/$file" "$root/srv/$file"
done
# Where Debian has it, by a package that is not needed here.
ln -sf ../lib/postgresql/15/bin/psql "$root/usr/bin/psql"
[ -e "$root/var/run" ] || ln -s /run "$root/var/run"
install -m 755 "$own/warm-up" "$root/etc/reveille/warm-up"
applets mkdir chown chmod rm su cat head wc

# initdb wants a null device and the time zones; neither needs more of a system than this.
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/urandom" c 1 9
chown 100:100 "$root/var/lib/postgresql"
chmod 1777 "$root/tmp"
as_postgres() {
    chroot --userspec=100:100 "$root" /bin/busybox env LC_ALL=C "$@"
}
bin=/usr/lib/postgresql/15/bin
as_postgres $bin/initdb --no-sync -D /var/lib/postgresql --auth=trust --locale=C >"$work/initdb" 2>&1 ||
    fail "initdb: $(tail -n 3 "$work/initdb")"
cat >>"$root/var/lib/postgresql/postgresql.conf" <<'EOF'
listen_addresses = '*'
unix_socket_directories = '/run/postgresql'
shared_buffers = 128MB
jit = off
EOF
echo 'host all all 0.0.0.0/0 trust' >>"$root/var/lib/postgresql/pg_hba.conf"
# Each statement on a line of its own, as the single-user mode wants it.
cat <<'EOF' |
CREATE TABLE visits (at timestamptz DEFAULT now());
CREATE TABLE items (id int PRIMARY KEY, bucket int, payload text);
INSERT INTO items SELECT n, n % 500, repeat(md5(n::text), 4) FROM generate_series(1, 200000) n;
CREATE INDEX items_by_bucket ON items (bucket);
VACUUM ANALYZE items;
EOF
    as_postgres $bin/postgres --single -D /var/lib/postgresql postgres >"$work/table" 2>&1 ||
    fail "no table: $(tail -n 3 "$work/table")"
rm -rf "$root/dev"
mkdir "$root/dev"

truncate -s "${disk_mib}M" "$work/disk.raw"
mkfs.ext4 -q -d "$root" "$work/disk.raw"
build --disk "$work/disk.raw" --root-device /dev/vda --memory-mib 512

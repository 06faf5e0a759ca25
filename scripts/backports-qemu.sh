#!/bin/sh
# Unpacks the QEMU of Debian's backports beside the installed one, without touching the system, and prints the path
# of a wrapper that runs it. Prints nothing where there is no newer one.
#
#   scripts/backports-qemu.sh DIR
set -eu

dir=$(mkdir -p "$1" && cd "$1" && pwd)
wrapper=$dir/qemu-system-x86_64
if [ -x "$wrapper" ]; then
    echo "$wrapper"
    exit 0
fi
# shellcheck disable=SC1091
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ "$codename" = bookworm ] || exit 0
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk -v name="$codename" '$2 == name { print $1; exit }')
[ -n "$mirror" ] || {
    echo "backports-qemu.sh: apt knows no mirror of $codename; try apt-get update" >&2
    exit 1
}

mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial" "$dir/debs" "$dir/root"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in "$codename" "$codename-backports"; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
done >"$dir/apt/sources.list"
cat >"$dir/apt/apt.conf" <<EOF
Dir::State::lists "$dir/apt/lists";
Dir::Cache "$dir/apt/cache";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
APT::Sandbox::User "root";
Debug::NoLocking "1";
EOF
export APT_CONFIG="$dir/apt/apt.conf"
apt-get -q -q update
# What the solver would install, taken by name so that every hash is checked; nothing is installed.
apt-get -q -q -t "$codename-backports" install --no-install-recommends --print-uris -y qemu-system-x86 |
    awk '{ sub(/_.*/, "", $2); print $2 }' | sort -u >"$dir/packages"
cd "$dir/debs"
while read -r package; do
    apt-get -q -q download "$package/$codename-backports" 2>/dev/null || apt-get -q -q download "$package"
done <"$dir/packages"
for deb in *.deb; do
    dpkg-deb -x "$deb" "$dir/root"
done
libraries=$dir/root/usr/lib/x86_64-linux-gnu
cat >"$wrapper.new" <<EOF
#!/bin/sh
export LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" QEMU_MODULE_DIR="$libraries/qemu"
exec "$dir/root/usr/bin/qemu-system-x86_64" -L "$dir/root/usr/share/qemu" -L "$dir/root/usr/share/seabios" "\$@"
EOF
chmod 755 "$wrapper.new"
mv "$wrapper.new" "$wrapper"
echo "$wrapper"

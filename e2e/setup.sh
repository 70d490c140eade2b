#!/bin/sh
# Prepares a Debian 12 or 13 host for the tests: one folder with Debian 12's Postfix
# (3.7) and one with Debian 13's (3.10, with TLSRPT), each a small Debian of its own,
# with systemd, what ruapost is used beside (OpenDKIM, OpenDMARC, rspamd, the MTA-STS
# resolver), unbound and the tools that sign zones for it, so that a Postfix of the host
# is never touched. On the host it installs strace(1), which slows down a disk, and
# what checks manual pages (mandoc), units (systemd-analyze), containers (buildah,
# podman, systemd-nspawn) and web pages (chromium); promtool is only unpacked.
# Run as root. The first time it takes a few minutes and 2 GB.
#
#   RUAPOST_E2E_ROOT    where the folders are kept, default /var/cache/ruapost-e2e
#   RUAPOST_E2E_MIRROR  the Debian mirror, default the one that apt uses here
set -eu

cache=${RUAPOST_E2E_ROOT:-/var/cache/ruapost-e2e}

fail() {
	echo "e2e/setup.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "must run as root"
[ -e /etc/debian_version ] || fail "needs a Debian host"

missing=
for need in debootstrap:debootstrap ip:iproute2 strace:strace mandoc:mandoc systemd-analyze:systemd \
	systemd-nspawn:systemd-container buildah:buildah podman:podman crun:crun \
	podman-compose:podman-compose chromium:chromium; do
	command -v "${need%:*}" >/dev/null || missing="$missing ${need#*:}"
done
if [ -n "$missing" ]; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	# shellcheck disable=SC2086 # a list
	apt-get -qq install --no-install-recommends $missing >/dev/null
fi

# mirror prints the address that apt has for the host's own release. apt knows it
# whichever of the two formats the sources are in.
mirror() {
	if [ -n "${RUAPOST_E2E_MIRROR:-}" ]; then
		echo "$RUAPOST_E2E_MIRROR"
		return
	fi
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	found=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v r="$codename" '$2 == r && $3 == "main" && $1 ~ /^https?:/ { print $1; exit }')
	echo "${found:-http://deb.debian.org/debian}"
}

# debootstrap downloads with wget, which does not read apt's proxy settings.
proxies() {
	apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy |
		sed 's/^/export /'
}

# root makes the folder $cache/$1 with Debian release $1 and the packages $2, and those
# that the tests of "setup" and of the package need besides. The name is only given once
# it is complete, so an interrupted run is redone, as is one for other packages.
root() {
	release=$1 packages=$2
	[ "$(cat "$cache/$release/packages" 2>/dev/null)" = "$packages $beside" ] && return
	echo "e2e/setup.sh: installing Debian $release with Postfix in $cache/$release" >&2
	mkdir -p "$cache"
	new=$cache/$release.new
	rm -rf "$new"
	if ! install_root >"$cache/$release.log" 2>&1; then
		tail -n 20 "$cache/$release.log" >&2
		fail "installing Debian $release failed, see $cache/$release.log"
	fi
	rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/*
	echo "$packages $beside" >"$new/packages"
	rm -rf "${cache:?}/$release"
	mv "$new" "$cache/$release"
}

# install_root fills the folder $new. debootstrap cannot order the dependencies of all
# packages, which apt can; policy-rc.d keeps apt from starting what it installs.
install_root() {
	debootstrap --variant=minbase --include="$packages" "$release" "$new" "$(mirror)" &&
		cp /etc/resolv.conf "$new/etc/resolv.conf" &&
		printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d" &&
		chmod 755 "$new/usr/sbin/policy-rc.d" &&
		chroot "$new" apt-get -qq update &&
		chroot "$new" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $beside &&
		rm "$new/usr/sbin/policy-rc.d"
}

eval "$(proxies)"
# One run at a time, also if two checkouts share the folder.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
beside="opendmarc rspamd postfix-mta-sts-resolver systemd systemd-sysv dbus"
root bookworm postfix,opendkim,unbound,ldnsutils,ca-certificates
root trixie postfix,libtlsrpt0,opendkim,unbound,ldnsutils,ca-certificates

# promtool comes with a server, which would be started if it were installed.
if [ ! -x "$cache/promtool" ]; then
	unpacked=$(mktemp -d)
	trap 'rm -rf "$unpacked"' EXIT
	(cd "$unpacked" && apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg-deb -x prometheus_*.deb .)
	mv "$unpacked/usr/bin/promtool" "$cache/promtool"
fi

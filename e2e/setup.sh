#!/bin/sh
# Prepares a Debian 12 or 13 host for the tests in this folder: one folder with
# Debian 12's Postfix (3.7) and one with Debian 13's (3.10, with TLSRPT), each a
# small Debian of its own, with OpenDKIM, unbound and the tools that sign zones for it,
# so that a Postfix of the host is never touched; and strace(1) on the host, which
# slows down a disk.
# Run as root. The first time it takes one or two minutes and 400 MB.
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
for need in debootstrap:debootstrap ip:iproute2 strace:strace; do
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

# root makes the folder $cache/$1 with Debian release $1 and the packages $2. The
# name is only given once it is complete, so an interrupted run is redone, as is one
# for other packages.
root() {
	release=$1 packages=$2
	[ "$(cat "$cache/$release/packages" 2>/dev/null)" = "$packages" ] && return
	echo "e2e/setup.sh: installing Debian $release with Postfix in $cache/$release" >&2
	mkdir -p "$cache"
	new=$cache/$release.new
	rm -rf "$new"
	if ! debootstrap --variant=minbase --include="$packages" "$release" "$new" "$(mirror)" >"$cache/$release.log" 2>&1; then
		tail -n 20 "$cache/$release.log" >&2
		fail "debootstrap $release failed, see $cache/$release.log"
	fi
	rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/*
	echo "$packages" >"$new/packages"
	rm -rf "${cache:?}/$release"
	mv "$new" "$cache/$release"
}

eval "$(proxies)"
# One run at a time, also if two checkouts share the folder.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
root bookworm postfix,opendkim,unbound,ldnsutils,ca-certificates
root trixie postfix,libtlsrpt0,opendkim,unbound,ldnsutils,ca-certificates

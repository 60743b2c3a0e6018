#!/usr/bin/env bash
# Installs what tests and "make dev" run beside plusone: redis-server, PostgreSQL and ps. What is there
# already, in whatever way it came, is left alone.
set -euo pipefail

packages=()
command -v redis-server >/dev/null || command -v valkey-server >/dev/null || packages+=(redis-server)
command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages+=(postgresql)
command -v ps >/dev/null || packages+=(procps)
if [[ ${#packages[@]} -eq 0 ]]; then
	exit 0
fi

if ! command -v apt-get >/dev/null; then
	cat >&2 <<-END
		missing: ${packages[*]}
		This script installs Debian packages only. Please install Redis 7.0 or later (redis-server on the
		PATH), PostgreSQL 14 or later (postgres and initdb on the PATH) and ps by the means of your system.
	END
	exit 1
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
	if ! command -v sudo >/dev/null; then
		echo "missing: ${packages[*]}; install them as root: apt-get install ${packages[*]}" >&2
		exit 1
	fi
	as_root=(sudo)
fi
echo "installing ${packages[*]}" >&2
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"

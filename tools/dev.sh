#!/usr/bin/env bash
# Runs bin/plusone in sharded mode with a Redis and a PostgreSQL of its own, until interrupted. Their data
# stays in .dev/ for the next time. Arguments go to "plusone serve".
set -euo pipefail
cd "$(dirname "$0")/.."

redis_port=${DEV_REDIS_PORT:-16379}
postgres_port=${DEV_POSTGRES_PORT:-15432}
data=$PWD/.dev

# Jobs get process groups of their own, so that Ctrl-C reaches this script alone and everything is
# stopped in order.
set -m
plusone_pid='' redis_pid='' postgres_pid='' stopping=''

stop() {
	stopping=yes
	if [[ -n $plusone_pid ]]; then
		kill -TERM "$plusone_pid" 2>/dev/null || true
	fi
}

cleanup() {
	trap '' INT TERM
	stop
	for job in "$plusone_pid:TERM" "$redis_pid:TERM" "$postgres_pid:INT"; do
		if [[ -n ${job%%:*} ]]; then
			kill "-${job##*:}" "${job%%:*}" 2>/dev/null || true
			wait "${job%%:*}" 2>/dev/null || true
		fi
	done
}
trap cleanup EXIT
trap stop INT TERM

fail() {
	echo "$1" >&2
	exit 1
}

# wait_for NAME PID LOG COMMAND... waits until the command succeeds, while the process lives.
wait_for() {
	local name=$1 pid=$2 log=$3
	shift 3
	for ((i = 0; i < 300; i++)); do
		if [[ -n $stopping ]]; then
			exit 130
		fi
		if ! kill -0 "$pid" 2>/dev/null; then
			tail -n 5 "$log" >&2
			fail "$name did not start; see $log"
		fi
		if "$@" >/dev/null 2>&1; then
			return
		fi
		sleep 0.1
	done
	fail "$name is not ready after 30 s; see $log"
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

for port in "$redis_port" "$postgres_port"; do
	if listens "$port"; then
		fail "port $port is taken: does another \"make dev\" run? DEV_REDIS_PORT and DEV_POSTGRES_PORT choose other ports"
	fi
done
mkdir -p "$data/redis" "$data/postgres"

# Redis. With appendfsync always, what was acknowledged is kept.
redis=$(command -v redis-server || command -v valkey-server) || fail 'redis-server is missing: run "make servers"'
"$redis" --bind 127.0.0.1 --port "$redis_port" --dir "$data/redis" --save '' \
	--appendonly yes --appendfsync always </dev/null >>"$data/redis.log" 2>&1 &
redis_pid=$!
redis_serves() (
	exec 3<>"/dev/tcp/127.0.0.1/$redis_port"
	printf 'PING\r\n' >&3
	IFS= read -r -t 1 answer <&3
	[[ $answer == +PONG* ]]
)
wait_for Redis "$redis_pid" "$data/redis.log" redis_serves

# PostgreSQL. It refuses to run as root.
postgres=$(command -v postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -n 1) ||
	fail 'postgres is missing: run "make servers"'
initdb=$(dirname "$(realpath "$postgres")")/initdb
as_user=(env) # not empty, which old versions of bash take for unset
if [[ $EUID -eq 0 ]]; then
	user=nobody
	if id postgres >/dev/null 2>&1; then
		user=postgres
	fi
	chown "$user" "$data/postgres"
	as_user=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --clear-groups)
	"${as_user[@]}" test -w "$data/postgres" || fail "user $user, as whom PostgreSQL runs for root, cannot reach $data/postgres"
fi
if [[ ! -e $data/postgres/plusone.created ]]; then
	echo "creating $data/postgres" >&2
	find "$data/postgres" -mindepth 1 -delete 2>/dev/null || true # what an interrupted try left
	"${as_user[@]}" "$initdb" -D "$data/postgres" -U plusone --auth=trust -E UTF8 --locale=C >"$data/postgres.log" 2>&1 ||
		fail "initdb failed; see $data/postgres.log"
	"${as_user[@]}" "$postgres" --single -D "$data/postgres" postgres <<<'CREATE DATABASE plusone' >>"$data/postgres.log" 2>&1
	touch "$data/postgres/plusone.created"
fi
"${as_user[@]}" "$postgres" -D "$data/postgres" -p "$postgres_port" -c listen_addresses=127.0.0.1 \
	-c unix_socket_directories= </dev/null >>"$data/postgres.log" 2>&1 &
postgres_pid=$!
# The server keeps its process id in the first line of this file and its state in the eighth.
postgres_serves() {
	local pid_file=$data/postgres/postmaster.pid
	[[ $(sed -n 1p "$pid_file") == "$postgres_pid" && $(sed -n 8p "$pid_file") == ready* ]]
}
wait_for PostgreSQL "$postgres_pid" "$data/postgres.log" postgres_serves

export PLUSONE_REDIS_URL=redis://127.0.0.1:$redis_port
export PLUSONE_POSTGRES_URL="postgres://plusone@127.0.0.1:$postgres_port/plusone?sslmode=disable"
bin/plusone serve "$@" </dev/null &
plusone_pid=$!
if [[ -n $stopping ]]; then
	stop
fi
while true; do
	status=0
	wait "$plusone_pid" || status=$?
	# wait returns early when a signal comes.
	kill -0 "$plusone_pid" 2>/dev/null || break
done
plusone_pid=''
exit "$status"

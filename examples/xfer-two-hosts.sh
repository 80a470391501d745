#!/bin/sh
# Two hosts on one machine, for the transfer alone: the targets of `kvgauge xfer --listen` in one network namespace, the
# initiators of `kvgauge xfer --connect` in another, a veth pair between them. Both backends use the same path.
#
#   sudo examples/xfer-two-hosts.sh [FOLDER] [FLAGS OF kvgauge xfer]       a new folder below kvgauge-runs/
#
# Ends with kvgauge's own code, and 77 when this machine cannot do it (no iproute2, not root, namespaces not allowed):
# then nothing was measured. On two real hosts the two commands are the same, with the same KVGAUGE_XFER_TOKEN on both.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-kvgauge-runs/xfer-two-hosts-$(date +%Y%m%d-%H%M%S)}
[ $# -eq 0 ] || shift
if [ -x .venv/bin/kvgauge ]; then bin=$PWD/.venv/bin; else bin=$(dirname "$(command -v kvgauge || echo ./kvgauge)"); fi
PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "TWO HOSTS NOT MEASURED: $1" >&2
    exit 77
}

[ -x "$bin/kvgauge" ] || cannot "there is no kvgauge: run make setup, or install it"
command -v ip > /dev/null || cannot "there is no command ip: install iproute2 (Debian: apt-get install iproute2)"
[ "$(id -u)" -eq 0 ] || cannot "only root may make network namespaces: run it through sudo"

targets=kvgauge-targets-$$
initiators=kvgauge-initiators-$$
listening=
running=
clean() {
    trap - EXIT INT TERM HUP
    for pid in $running $listening; do
        kill -TERM "$pid" 2> /dev/null || true # its workers end with it
        wait "$pid" 2> /dev/null || true
    done
    ip netns del "$targets" 2> /dev/null || true # the veth pair goes with them
    ip netns del "$initiators" 2> /dev/null || true
}
trap clean EXIT
trap 'clean; exit 130' INT TERM HUP

for name in "$targets" "$initiators"; do
    ip netns add "$name" || cannot "network namespaces are not allowed here"
    ip -n "$name" link set lo up || cannot "a network namespace cannot be entered here"
done
ip link add kvgt$$ netns "$targets" type veth peer name kvgi$$ netns "$initiators" || cannot "no veth pair can be made here"
ip -n "$targets" addr add 10.99.2.1/24 dev kvgt$$
ip -n "$initiators" addr add 10.99.2.2/24 dev kvgi$$
ip -n "$targets" link set kvgt$$ up
ip -n "$initiators" link set kvgi$$ up
waited=0
state() { ip netns exec "$1" cat "/sys/class/net/$2/operstate"; }
# both ends: libfabric and UCX pass over an interface that is not up yet
until [ "$(state "$targets" "kvgt$$")" = up ] && [ "$(state "$initiators" "kvgi$$")" = up ]; do
    waited=$((waited + 1))
    [ "$waited" -lt 50 ] || cannot "the veth pair did not come up within 5 s"
    sleep 0.1
done

# The token stays in the environment of these two commands: no file, no command line, no log has it.
KVGAUGE_XFER_TOKEN=$("$bin/python" -c 'import secrets; print(secrets.token_urlsafe(24))')
export KVGAUGE_XFER_TOKEN
ip netns exec "$targets" "$bin/kvgauge" xfer --listen 10.99.2.1:18515 --wait 60 &
listening=$!
ip netns exec "$initiators" "$bin/kvgauge" xfer --connect 10.99.2.1:18515 --rounds 2 --seconds 0.5 --out "$folder" "$@" &
running=$!
status=0
wait "$running" || status=$?
running=
[ "$status" -eq 0 ] || exit "$status"
wait "$listening" || status=$?
listening=
exit "$status"

#!/bin/sh
# Two hosts on one machine: prefill in one network namespace, decode in another, a veth pair between them, both of its
# ends held to RATE by tc. UCX and LIBFABRIC then use the same path, and neither may be faster than it.
#
#   sudo examples/two-hosts.sh [RATE] [DELAY] [FOLDER]      1gbit, 100us and a new folder below kvgauge-runs/
#
# Ends with 0 when both stayed below RATE, 1 when one did not, kvgauge's own code when the run failed, and 77 when this
# machine cannot do it (no iproute2, not root, namespaces or tc not allowed): then nothing was measured.
set -eu
cd "$(dirname "$0")/.."
rate=${1:-1gbit}
delay=${2:-100us}
folder=${3:-kvgauge-runs/two-hosts-$(date +%Y%m%d-%H%M%S)}
if [ -x .venv/bin/kvgauge ]; then bin=$PWD/.venv/bin; else bin=$(dirname "$(command -v kvgauge || echo ./kvgauge)"); fi
PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "TWO HOSTS NOT MEASURED: $1" >&2
    exit 77
}

[ -x "$bin/kvgauge" ] || cannot "there is no kvgauge: run make setup, or install it"
for tool in ip tc; do
    command -v "$tool" > /dev/null || cannot "there is no command $tool: install iproute2 (Debian: apt-get install iproute2)"
done
[ "$(id -u)" -eq 0 ] || cannot "only root may make network namespaces: run it through sudo"

prefill=kvgauge-prefill-$$
decode=kvgauge-decode-$$
run=
clean() {
    trap - EXIT INT TERM HUP
    if [ -n "$run" ]; then
        kill -TERM "$run" 2> /dev/null || true # kvgauge ends its workers
        wait "$run" 2> /dev/null || true
    fi
    ip netns del "$prefill" 2> /dev/null || true # the veth pair goes with them
    ip netns del "$decode" 2> /dev/null || true
}
trap clean EXIT
trap 'clean; exit 130' INT TERM HUP

for name in "$prefill" "$decode"; do
    ip netns add "$name" || cannot "network namespaces are not allowed here"
    ip -n "$name" link set lo up || cannot "a network namespace cannot be entered here"
done
ip link add kvgp$$ netns "$prefill" type veth peer name kvgd$$ netns "$decode" || cannot "no veth pair can be made here"
ip -n "$prefill" addr add 10.99.1.1/24 dev kvgp$$
ip -n "$decode" addr add 10.99.1.2/24 dev kvgd$$
ip -n "$prefill" link set kvgp$$ up
ip -n "$decode" link set kvgd$$ up

# The rate first: what leaves it is then delayed. A kernel without netem shapes the rate and cannot delay.
delayed=$delay
for end in "$prefill kvgp$$" "$decode kvgd$$"; do
    set -- $end
    tc -n "$1" qdisc add dev "$2" root handle 1: tbf rate "$rate" burst 128kb latency 100ms ||
        cannot "tc cannot hold a veth to $rate here"
    tc -n "$1" qdisc add dev "$2" parent 1: handle 2: netem delay "$delay" limit 100000 2> /dev/null || delayed=
done
if [ -z "$delayed" ]; then
    echo "NO DELAY: this kernel has no netem (module sch_netem), so the path has the rate $rate and no delay of $delay" >&2
fi

"$bin/kvgauge" run examples/two-hosts.yaml --out "$folder" \
    --namespace "prefill=$prefill" --namespace "decode=$decode" --transfer-timeout 300 --request-timeout 320 &
run=$!
status=0
wait "$run" || status=$?
run=
# 1 means that one backend is slower than the other: that is no failure here.
[ "$status" -le 1 ] || exit "$status"
"$bin/python" examples/bandwidth.py "$folder" "$rate" "${delayed:-none}"

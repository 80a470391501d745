#!/bin/sh
# From two folders to a verdict: a test measured, measured again with nothing changed, and once more after a switch.
#
#   sh examples/before-and-after.sh [FOLDER]      about four minutes on two cores; KVGAUGE=kvgauge where it is installed
#
# Exit code 0 when both comparisons end in a verdict (whichever), 4 when one cannot tell, 3 when a run is invalid.
set -u
cd "$(dirname "$0")/.."
kvgauge=${KVGAUGE:-.venv/bin/kvgauge}
folder=${1:-kvgauge-runs/before-and-after}
plan=examples/before-and-after.yaml

$kvgauge run "$plan" --test UCX --out "$folder/before" >/dev/null || exit
$kvgauge run "$plan" --test UCX --out "$folder/again" >/dev/null || exit
$kvgauge run "$plan" --test LIBFABRIC --out "$folder/after" >/dev/null || exit

told=0
show() {
    echo "\$ kvgauge compare $*"
    $kvgauge compare "$@"
    code=$?
    echo "exit code $code"
    [ $code -le 1 ] || told=$code
}
show "$folder/before" "$folder/again" --gate ttft:25%
show "$folder/before" "$folder/after" --tests UCX LIBFABRIC
exit $told

#!/usr/bin/env bash
# Measures the NBD server example beside nbdkit's memory plugin and qemu-nbd on an image
# of the same size in a tmpfs:
#
#     benches/nbd_compare.sh                      # the default options of nbd_target
#     benches/nbd_compare.sh '--mode poll' '--mode interrupt --cores 0x1'
#
# Each argument is one more way to run nbd_target. Needs fio (with its nbd engine),
# nbdcopy, nbdkit and qemu-nbd. All servers hold the same random data and are asked for
# 4 KiB random reads over a Unix socket; the client runs on the same machine, on
# whatever cores the system gives it. The servers take turns (one after the other, then
# all again), so that what else the machine does falls on all of them, and each is
# stopped (SIGSTOP) while it is not its turn, so that none that polls takes time from the
# others. Prints the median IOPS of the repetitions, and the lowest and highest.
#
# Environment: SIZE (256M), SECONDS_EACH (2), REPEAT (3), ROWS ("1x1 1x2 32x1 32x2":
# iodepth x jobs), TMPDIR (for sockets), SHM (/dev/shm, a tmpfs for the image), PEERS
# ("nbdkit qemu-nbd"; empty: only nbd_target).
set -euo pipefail
cd "$(dirname "$0")/.."

size=${SIZE:-256M}
seconds=${SECONDS_EACH:-2}
repeat=${REPEAT:-3}
rows=${ROWS:-1x1 1x2 32x1 32x2}
peers=${PEERS-nbdkit qemu-nbd}
target=${CARGO_TARGET_DIR:-target}

cargo build --release --quiet --example nbd_target

work=$(mktemp -d)
image=$(mktemp "${SHM:-/dev/shm}/nbd_compare.XXXXXX")
servers=()
finish() {
    for pid in ${servers[@]+"${servers[@]}"}; do
        kill -CONT "$pid" 2>/dev/null || true
        kill "$pid" 2>/dev/null && wait "$pid" || true
    done
    rm -rf "$work" "$image"
}
trap finish EXIT

# start NAME COMMAND...: runs a server, which listens on $work/NAME.
names=()
start() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 200); do
        [ -S "$work/$name" ] && break
        sleep 0.05
    done
    [ -S "$work/$name" ] || { cat "$work/$name.log" >&2; exit 1; }
    names+=("$name")
    nbdcopy "$image" "nbd+unix:///?socket=$work/$name"
    kill -STOP "${servers[-1]}"
}

head -c "$(numfmt --from=iec "$size")" /dev/urandom >"$image"
[ $# -gt 0 ] || set -- ''
way=0
declare -A title
for options in "$@"; do
    way=$((way + 1))
    title[target$way]="nbd_target $options"
    # Unquoted: the options are words.
    start "target$way" "$target/release/examples/nbd_target" \
        --memory "$size" --socket "$work/target$way" $options
done
for peer in $peers; do
    title[$peer]=$peer
    case $peer in
        nbdkit) start nbdkit nbdkit -f -U "$work/nbdkit" memory "$size" ;;
        qemu-nbd) start qemu-nbd qemu-nbd --persistent --shared=0 -f raw -k "$work/qemu-nbd" "$image" ;;
    esac
done

# iops NAME DEPTH JOBS: one measurement.
iops() {
    fio --name=compare --ioengine=nbd --uri="nbd+unix:///?socket=$work/$1" --rw=randread \
        --bs=4k --iodepth="$2" --numjobs="$3" --group_reporting --time_based \
        --ramp_time=0.3 --runtime="$seconds" --thread --output-format=terse --terse-version=3 |
        awk -F';' '$1 == 3 { print $8 }'
}

printf '%-40s' '4 KiB random read, IOPS'
for row in $rows; do printf '%26s' "iodepth ${row%x*}, ${row#*x} jobs"; done
printf '\n'
for row in $rows; do
    for _ in $(seq "$repeat"); do
        for index in "${!names[@]}"; do
            name=${names[index]}
            kill -CONT "${servers[index]}"
            iops "$name" "${row%x*}" "${row#*x}" >>"$work/$name.$row"
            kill -STOP "${servers[index]}"
        done
    done
done
for name in "${names[@]}"; do
    printf '%-40s' "${title[$name]}"
    for row in $rows; do
        sort -n "$work/$name.$row" | awk '
            { value[NR] = $1 }
            END { printf "%26s", sprintf("%d (%d-%d)", value[int((NR + 1) / 2)], value[1], value[NR]) }'
    done
    printf '\n'
done

# The lab from inside: brings up the network and the soft-RoCE device, runs command.sh, tells how it ended.
#
# Two virtio ports carry what the command writes. Each ends with a line of its own (the marker), so that the host
# knows that it has everything; the exit status comes as a file. The host ends the machine.
run=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Opens the port of this name, which the kernel may still be adding, as the descriptor given.
port() {
    until device=$(grep -lx "$1" /sys/class/virtio-ports/*/name) && [ -c "/dev/$(basename "${device%/name}")" ]; do
        sleep 0.1
    done 2>/dev/null
    eval "exec $2>/dev/$(basename "${device%/name}")"
}
port lab.stdout 8
port lab.stderr 9

end() {
    echo "$1" >"$run/status.part" && mv "$run/status.part" "$run/status"
    cat "$run/marker" >&8
    cat "$run/marker" >&9
    while :; do sleep 3600; done
}
must() {
    "$@" >&9 2>&9 && return
    echo "lab: the virtual machine cannot be set up: $* failed" >&9
    end setup
}

must ip link set lo up
must modprobe -a dummy rdma_rxe ib_uverbs rdma_ucm tls vsock_loopback sch_netem
must ip link add dummy0 type dummy
must ip link set dummy0 mtu 4200 up
must ip address add 10.55.0.1/24 dev dummy0
must ip address add fd55::1/64 dev dummy0 nodad
must rdma link add rxe0 type rxe netdev dummy0
must ulimit -l unlimited
must hostname lab

# The command writes into pipes, not into the ports: those can be opened once only, and /dev/stdout opens anew.
must mkfifo /run/lab.stdout /run/lab.stderr
cat /run/lab.stdout >&8 &
stdout=$!
cat /run/lab.stderr >&9 &
stderr=$!
: >"$run/begun"
setsid --wait /bin/bash "$run/command.sh" </dev/null >/run/lab.stdout 2>/run/lab.stderr 8>&- 9>&-
status=$?

# Whatever the command has left running would hold the pipes open.
for process in /proc/[0-9]*; do
    case ${process#/proc/} in
    1 | "$stdout" | "$stderr") ;;
    *) kill -9 "${process#/proc/}" 2>/dev/null ;;
    esac
done
wait "$stdout" "$stderr"
end "$status"

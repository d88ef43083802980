#!/bin/sh
# Boots systemd as PID 1 of namespaces of its own, on an overlay of this machine's root that is forgotten afterwards.
# `keep CGROUP SOURCE` runs outside: it makes the cgroup, starts what runs inside, says the pid of its parent, and tidies
# up at the end of standard input, which comes at the latest when the test process dies. `boot SOURCE` runs inside.
set -eu

keep() {
    trap '' INT TERM HUP # the end of standard input is what counts
    mkdir "$1"
    (
        echo 0 >"$1/cgroup.procs"
        # Should this shell be killed, the chain of parents ends PID 1, and the kernel all that is left inside.
        exec setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --ipc --uts \
            --cgroup --net "$0" boot "$2"
    ) <&- &
    echo $!
    exec 1>&-
    cat >/dev/null
    echo 1 >"$1/cgroup.kill"
    wait
    until grep -q '^populated 0' "$1/cgroup.events"; do sleep 0.02; done
    find "$1" -depth -type d -exec rmdir {} +
}

boot() {
    # Mounted over something that is there, so that no directory is left outside.
    mount -t tmpfs -o mode=755 tmpfs /mnt
    cd /mnt
    mkdir upper work root
    mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
    cd root
    mount -t proc proc proc
    # What is not in a namespace belongs to the machine outside: no sysctl, no device, no file system of the kernel.
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    devices
    # The sources may lie on another file system than the root.
    mkdir -p ".$1"
    mount --bind -o ro "$1" ".$1"
    mount -o remount,bind,ro ".$1"
    settings
    mkdir -p run/outside
    pivot_root . run/outside
    umount -l /run/outside
    rmdir /run/outside
    exec /lib/systemd/systemd --log-target=journal --show-status=0
}

devices() {
    mount -t tmpfs -o mode=755 tmpfs dev
    for name in null zero full random urandom tty; do
        touch dev/$name
        mount --bind /dev/$name dev/$name
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
}

settings() {
    # Whatever is enabled on the machine outside has no business in here.
    find etc/systemd/system -name '*.wants' -prune -exec rm -r {} +
    rm -f etc/systemd/system-generators/* etc/fstab
    mkdir -p etc/systemd/system-generators
    touch etc/fstab
    for name in systemd-sysv-generator systemd-getty-generator systemd-gpt-auto-generator; do
        ln -s /dev/null etc/systemd/system-generators/$name
    done
    for unit in getty.target dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount tmp.mount \
        sys-fs-fuse-connections.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
        systemd-udevd.service systemd-udev-trigger.service systemd-logind.service systemd-tmpfiles-clean.timer \
        systemd-journald-audit.socket systemd-modules-load.service; do
        ln -sf /dev/null etc/systemd/system/$unit
    done
    ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
    rm -rf var/log/journal # or the journal of the machine outside would be shown too
    export container=other
}

"$@"

"""Machines that are never run, kept for as long as the lab lives, so that its kernel need not change its own code.

KVM switches a few jump labels when the first machine of a host is made and when the last one has ended. One of them is
in the scheduler (preempt_notifier_key). A kernel patches a label by way of a breakpoint, and an emulator of several
processors (QEMU 7.2, TCG) may keep the translation of that breakpoint when it has been taken away again: then both
processors trap there for good, nothing is said any more, and no clock goes. It happened once in a quarter of an hour
of tests. As long as there are machines of each kind, no label is switched.

modprobe starts it behind KVM's module (``initramfs``), and goes on when the machines are there.
"""

from __future__ import annotations

import os
import signal
from fcntl import ioctl

_CREATE_VM, _CREATE_VCPU, _CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60  # <linux/kvm.h>


def main() -> None:
    """Make them, and keep them in a process of its own."""
    kvm = os.open("/dev/kvm", os.O_RDWR)
    for has_apic in (True, False):
        machine = ioctl(kvm, _CREATE_VM, 0)
        if has_apic:
            ioctl(machine, _CREATE_IRQCHIP, 0)
        ioctl(machine, _CREATE_VCPU, 0)  # what it gives is kept, as all of these: nobody closes it
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # whoever reads what modprobe says reads to its end
        os.dup2(null, fd)
    signal.pause()


if __name__ == "__main__":
    main()

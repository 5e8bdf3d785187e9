"""The lab: a machine with another kernel, in which a part of the tests runs.

What this host's own kernel lacks can be had from Debian's: cgroup v2 alone with every controller, AppArmor, another
version. QEMU emulates a machine for it, as slow as it is certain: no /dev/kvm is asked for. The host's whole file
system is shared with it, read-only (virtiofs), below memory that takes what is written; so the same checkout, the same
environment and the same tools are there, and nothing is left behind.

    kernel.py     Debian's cloud kernel and its modules, unpacked once beside the environment
    initramfs.py  what the kernel starts: modules, mounts, then a command
    systemd.py    or systemd as its first process, with three units, and the command one of them
    machine.py    QEMU around it: output as it comes, and the command's exit status
    artefacts.py  a plugin of pytest's in the machine: what a failed test leaves for those outside

A test says itself where it runs: ``@pytest.mark.lab`` also in the lab, ``@pytest.mark.systemd`` only in a second
machine of it, where systemd is the first process. Outside it runs, or skips, as any other. All of it takes minutes:
mark what asks the kernel for something that this host may lack.
"""

"""The executor that lets the host's processor run the guest: Linux's KVM. Documentation/virt/kvm/api.rst.

executor.py  the machine as the kernel knows it: memory slots, interrupt lines, doorbells
vcpu.py      a virtual CPU: run, and what it left for
x86.py       what the processor is told it is (CPUID), and how it begins
x86_debug.py breakpoints, steps
"""

from mamushka.machine.executors.kvm.executor import DEVICE, KvmExecutor, open_device

__all__ = ["DEVICE", "KvmExecutor", "open_device"]

"""What boots: kernels into memory, the tables that tell them what there is, and their first file system.

layout         where everything lies
load           a kernel of any known format -> Entry        linux, zero_page, pvh, multiboot, elf, compressed
memory_map     what of memory may be used                   acpi, aml   what stands where, and how to end
initramfs      archives                                     modules     which, in which order
command_line   the kernel's parameters                      kernels     which kernel, from where
"""

from __future__ import annotations

from mamushka.machine.boot.loading import check, is_program, load

__all__ = ["check", "is_program", "load"]

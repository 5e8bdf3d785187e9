# What doctor's probe runs in a machine of its own: 64-bit, ring 0, one page at 0x1000, everything mapped for all rings.
# Port 0x80 is told three times, before and after a loop, port 0x81 the code segment in which a system call arrives.
        .intel_syntax noprefix
        out     0x80, al                # everything is warm now
        out     0x80, al                # what an exit alone takes
        mov     ecx, 500
again:  nop
        dec     ecx
        jnz     again
        out     0x80, al

        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 1                  # SCE: system calls exist
        wrmsr
        mov     ecx, 0xc0000081         # STAR: kernel's segments from 0x10, the user's from 0x23
        xor     eax, eax
        mov     edx, 0x00230010
        wrmsr
        mov     ecx, 0xc0000082         # LSTAR
        mov     eax, offset kernel
        xor     edx, edx
        wrmsr
        mov     ecx, 0xc0000084         # SFMASK: no flag is cleared
        xor     eax, eax
        wrmsr
        mov     ecx, offset user
        mov     r11d, 2
        sysretq
user:   syscall
kernel: mov     eax, cs
        out     0x81, al
        hlt

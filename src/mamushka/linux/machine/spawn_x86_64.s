# long spawn(struct clone_args *, size_t, struct order *): clone3, and in the child, which shares this very stack,
# leave the ordered descriptors open over execveat. See script.py.
        .intel_syntax noprefix
        .text
spawn:  mov     r8, rdx
        mov     eax, 435                # clone3
        syscall
        test    rax, rax
        jz      child
        ret
child:  mov     r12, r8
        mov     r13d, [r12 + 24]
each:   dec     r13d
        js      become
        mov     edi, [r12 + 28 + r13 * 4]
        mov     esi, 2                  # F_SETFD
        xor     edx, edx
        mov     eax, 72                 # fcntl
        syscall
        jmp     each
become: mov     edi, [r12 + 20]
        mov     rsi, [r12]              # ""
        mov     rdx, r12                # {"", NULL}
        lea     r10, [r12 + 8]          # {NULL}
        mov     r8d, 0x1000             # AT_EMPTY_PATH
        mov     eax, 322                # execveat
        syscall
        neg     eax
        mov     [r12 + 16], eax
        mov     edi, 127
        mov     eax, 231                # exit_group
        syscall

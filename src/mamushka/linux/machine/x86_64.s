# Performs a script: see script.py for the shape of a row. rbx is the row, rbp the page of variables.
        .intel_syntax noprefix
        .text
_start: mov     ebp, 0x410000
        mov     ebx, [rbp + 12]
row:    mov     r12d, [rbx]
        movsxd  rdi, dword ptr [rbx + 4]
        movsxd  rsi, dword ptr [rbx + 8]
        movsxd  rdx, dword ptr [rbx + 12]
        movsxd  r10, dword ptr [rbx + 16]
        movsxd  r8, dword ptr [rbx + 20]
        movsxd  r9, dword ptr [rbx + 24]
        test    r12d, 1 << 16           # arguments that are variables
        jz      1f
        movsxd  rdi, dword ptr [rdi]
1:      test    r12d, 1 << 17
        jz      1f
        movsxd  rsi, dword ptr [rsi]
1:      test    r12d, 1 << 18
        jz      1f
        movsxd  rdx, dword ptr [rdx]
1:      test    r12d, 1 << 19
        jz      1f
        movsxd  r10, dword ptr [r10]
1:      mov     rax, rdi
        test    r12d, 1 << 24
        jnz     compare
        test    r12d, 1 << 25
        jnz     fail
        test    r12d, 1 << 26
        jnz     store
        test    r12d, 1 << 27
        jnz     leap
        movzx   eax, r12w
        syscall
        cmp     rax, -4095
        jae     error
store:  mov     ecx, [rbx + 28]
        mov     [rcx], eax
next:   add     ebx, 64
        jmp     row
leap:   mov     ecx, [rbx + 28]
        add     ebx, 64
        mov     [rcx], ebx
        mov     ebx, edi
        jmp     row
compare:
        and     edi, esi
        cmp     edi, edx
        je      next
        mov     ebx, [rbx + 36]
        jmp     row
fail:   neg     eax
error:  neg     eax
        cmp     eax, [rbx + 32]         # errors that lead somewhere, the third perhaps all
        mov     ecx, [rbx + 36]
        je      go
        cmp     eax, [rbx + 40]
        mov     ecx, [rbx + 44]
        je      go
        cmp     eax, [rbx + 48]
        mov     ecx, [rbx + 52]
        je      go
        cmp     dword ptr [rbx + 48], -1
        je      go
        mov     [rbp + 4], eax          # any other is told
        mov     ecx, [rbx + 60]
        mov     [rbp + 224], ecx
        mov     ecx, [rbx + 56]
go:     mov     ebx, ecx
        jmp     row

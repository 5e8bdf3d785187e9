# Performs a script: see script.py for the shape of a row. s1 is the row, s2 the page of variables.
        .option norelax
        .option norvc
        .text
_start: lui     s2, 0x410
        lwu     s1, 12(s2)
row:    lw      s3, 0(s1)
        lw      a0, 4(s1)
        lw      a1, 8(s1)
        lw      a2, 12(s1)
        lw      a3, 16(s1)
        lw      a4, 20(s1)
        lw      a5, 24(s1)
        srli    t0, s3, 16              # arguments that are variables
        andi    t1, t0, 1
        beqz    t1, 1f
        lw      a0, 0(a0)
1:      andi    t1, t0, 2
        beqz    t1, 1f
        lw      a1, 0(a1)
1:      andi    t1, t0, 4
        beqz    t1, 1f
        lw      a2, 0(a2)
1:      andi    t1, t0, 8
        beqz    t1, 1f
        lw      a3, 0(a3)
1:      andi    t1, t0, 256
        bnez    t1, compare
        andi    t1, t0, 512
        bnez    t1, fail
        andi    t1, t0, 1024
        bnez    t1, store
        slli    t1, t0, 52
        bltz    t1, leap
        slli    a7, s3, 48
        srli    a7, a7, 48
        ecall
        li      t0, -4095
        bgeu    a0, t0, error
store:  lwu     t0, 28(s1)
        sw      a0, 0(t0)
next:   addi    s1, s1, 64
        j       row
leap:   lwu     t0, 28(s1)
        addi    s1, s1, 64
        sw      s1, 0(t0)
        slli    s1, a0, 32
        srli    s1, s1, 32
        j       row
compare:
        and     a0, a0, a1
        sext.w  a0, a0
        beq     a0, a2, next
        lwu     s1, 36(s1)
        j       row
fail:   neg     a0, a0
error:  neg     a0, a0
        lw      t0, 32(s1)              # errors that lead somewhere, the third perhaps all
        lwu     t1, 36(s1)
        beq     a0, t0, go
        lw      t0, 40(s1)
        lwu     t1, 44(s1)
        beq     a0, t0, go
        lw      t0, 48(s1)
        lwu     t1, 52(s1)
        beq     a0, t0, go
        li      t2, -1
        beq     t0, t2, go
        sw      a0, 4(s2)               # any other is told
        lw      t0, 60(s1)
        sw      t0, 224(s2)
        lwu     t1, 56(s1)
go:     mv      s1, t1
        j       row

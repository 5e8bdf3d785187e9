// Performs a script: see script.py for the shape of a row. x19 is the row, x20 the page of variables.
        .text
_start: mov     x20, #0x410000
        ldr     w19, [x20, #12]
row:    ldr     w21, [x19]
        ldrsw   x0, [x19, #4]
        ldrsw   x1, [x19, #8]
        ldrsw   x2, [x19, #12]
        ldrsw   x3, [x19, #16]
        ldrsw   x4, [x19, #20]
        ldrsw   x5, [x19, #24]
        tbz     w21, #16, 1f              // arguments that are variables
        ldrsw   x0, [x0]
1:      tbz     w21, #17, 1f
        ldrsw   x1, [x1]
1:      tbz     w21, #18, 1f
        ldrsw   x2, [x2]
1:      tbz     w21, #19, 1f
        ldrsw   x3, [x3]
1:      tbnz    w21, #24, compare
        tbnz    w21, #25, fail
        tbnz    w21, #26, store
        tbnz    w21, #27, leap
        and     w8, w21, #0xffff
        svc     #0
        cmn     x0, #4095
        b.hs    error
store:  ldr     w9, [x19, #28]
        str     w0, [x9]
next:   add     w19, w19, #64
        b       row
leap:   ldr     w9, [x19, #28]
        add     w19, w19, #64
        str     w19, [x9]
        mov     w19, w0
        b       row
compare:
        and     w0, w0, w1
        cmp     w0, w2
        b.eq    next
        ldr     w19, [x19, #36]
        b       row
fail:   neg     w0, w0
error:  neg     w0, w0
        ldp     w9, w10, [x19, #32]       // errors that lead somewhere, the third perhaps all
        cmp     w0, w9
        b.eq    go
        ldp     w9, w10, [x19, #40]
        cmp     w0, w9
        b.eq    go
        ldp     w9, w10, [x19, #48]
        cmp     w0, w9
        b.eq    go
        cmn     w9, #1
        b.eq    go
        str     w0, [x20, #4]             // any other is told
        ldr     w9, [x19, #60]
        str     w9, [x20, #224]
        ldr     w10, [x19, #56]
go:     mov     w19, w10
        b       row

# /.reveille/refresh, the refresher: sets what a guest cannot know after it was restored. It waits at a serial port of
# its own (standard input, open for reading and writing), because starting any program takes an emulated guest that was
# just restored a tenth of a second, and Linux has no command for half of it. It is as small as a program can be.
#
# It reads records of 96 bytes, all numbers little-endian:
#
#   0   8  number of the record
#   8   8  seconds since 1970      \ struct timespec
#   16  8  nanoseconds             /
#   24  4  bits of entropy (512)   \
#   28  4  bytes of them (64)       > struct rand_pool_info (random(4))
#   32 64  random bytes            /
#
# For each it sets the clock, adds the bytes to the random pool, has the generator seeded from it at once, and answers
# with 9 bytes: the number, and a byte whose bit 0 is set if the clock, bit 1 if the generator is not as it should be,
# and bit 2 if there is a program /etc/reveille/after-wake.
#
# The whole file, headers included, is made here: no linker, the same bytes from every assembler.
#
#   as -o refresh.o refresh.S && objcopy -O binary -j .text refresh.o refresh

        .intel_syntax noprefix
        .text
        .set    base, 0x400000
        .set    record, 96

file:   .byte   0x7f, 'E', 'L', 'F', 2, 1, 1, 0         # 64 bit, little endian
        .quad   0
        .word   2, 62                                   # executable, x86-64
        .long   1
        .quad   base + (start - file)
        .quad   headers - file
        .quad   0
        .long   0
        .word   64, 56, 1, 0, 0, 0
headers:.long   1, 5                                    # load, to be read and run
        .quad   0, base, base
        .quad   end - file, end - file
        .quad   0x1000

start:  sub     rsp, record
next:   xor     ebx, ebx                                # bytes read so far
read:   mov     edx, record
        sub     edx, ebx
        jz      clock
        lea     rsi, [rsp + rbx]
        xor     edi, edi
        xor     eax, eax                                # read
        syscall
        test    eax, eax
        jle     alone
        add     ebx, eax
        jmp     read

alone:  lea     rdi, [rip + second]                     # nobody is at the other end: half a record is forgotten
        xor     esi, esi
        mov     eax, 35                                 # nanosleep
        syscall
        jmp     next

clock:  xor     ebx, ebx                                # now what is wrong
        lea     rsi, [rsp + 8]
        xor     edi, edi                                # CLOCK_REALTIME
        mov     eax, 227                                # clock_settime
        syscall
        test    eax, eax
        jz      pool
        or      ebx, 1

pool:   lea     rdi, [rip + device]
        mov     esi, 2                                  # O_RDWR
        mov     eax, 2                                  # open
        syscall
        test    eax, eax
        js      stale
        mov     r12d, eax
        mov     edi, r12d
        mov     esi, 0x40085203                         # RNDADDENTROPY
        lea     rdx, [rsp + 24]
        mov     eax, 16                                 # ioctl
        syscall
        mov     r13d, eax
        mov     edi, r12d
        mov     esi, 0x5207                             # RNDRESEEDCRNG
        xor     edx, edx
        mov     eax, 16
        syscall
        or      r13d, eax
        mov     edi, r12d
        mov     eax, 3                                  # close
        syscall
        test    r13d, r13d
        jz      hook
stale:  or      ebx, 2

hook:   lea     rdi, [rip + after]
        mov     esi, 1                                  # X_OK
        mov     eax, 21                                 # access
        syscall
        test    eax, eax
        jnz     answer
        or      ebx, 4

answer: lea     rdi, [rsp + 8]                          # the random bytes are nobody's business any more
        xor     eax, eax
        mov     ecx, (record - 8) / 4
        rep stosd
        mov     [rsp + 8], bl
        xor     edi, edi
        mov     rsi, rsp
        mov     edx, 9
        mov     eax, 1                                  # write
        syscall
        jmp     next

second: .quad   1, 0
device: .asciz  "/dev/urandom"
after:  .asciz  "/etc/reveille/after-wake"
end:

# The firmware of a guest whose use of its memory is known block by block (touching_guest.py). It writes all pages of
# blocks 1 … BLOCKS once, then goes around for ever: of each block the first so many pages (COUNTS) are touched, and a
# byte to port 0xe9 tells of each round. 64 KiB at the end of the first 4 GiB, where a processor begins.
        .set    rom, 0xffff0000
        .set    page, 4096
        .set    block, 512 * page

        .code16
begin:  cli
        lgdtl   %cs:gdtr
        mov     $1, %eax
        mov     %eax, %cr0
        ljmpl   $8, $rom + flat
gdtr:   .word   gdt_end - gdt - 1
        .long   rom + gdt
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff              # 8: code, at all addresses
        .quad   0x00cf92000000ffff              # 16: data, at all addresses
gdt_end:

        .code32
flat:   mov     $16, %eax
        mov     %eax, %ds
        mov     $block, %edi
fill:   movb    $1, (%edi)
        add     $page, %edi
        cmp     $(BLOCKS + 1) * block, %edi
        jb      fill

round:  mov     $block, %ebx
        mov     $rom + counts, %esi
blocks: movzwl  (%esi), %ecx
        jecxz   next
        mov     %ebx, %edi
touch:  incb    (%edi)
        add     $page, %edi
        loop    touch
next:   add     $2, %esi
        add     $block, %ebx
        cmp     $(BLOCKS + 1) * block, %ebx
        jb      blocks
        mov     $'.', %al
        outb    %al, $0xe9
        jmp     round
counts: .word   COUNTS

        .org    0xfff0
        .code16
        jmp     begin
        .org    0x10000

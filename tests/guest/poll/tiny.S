/* The smallest guest: entered by PVH, it ends with success. Its ELF headers are written out, so that
   the file is nothing but what a loader looks at; linked as a flat file to BASE. */

#define BASE 0x100000

    .section .text
    .code32
file:
    .byte 0x7f, 'E', 'L', 'F', 1, 1, 1, 0       /* 32 bits, little-endian */
    .quad 0
    .word 2, 3                                  /* ET_EXEC, EM_386 */
    .long 1
    .long BASE + start - file                   /* e_entry */
    .long segments - file                       /* e_phoff */
    .long 0, 0                                  /* e_shoff, e_flags */
    .word 52, 32, 2                             /* e_ehsize, e_phentsize, e_phnum */
    .word 40, 0, 0                              /* no sections */
segments:
    .long 1, 0, BASE, BASE                      /* PT_LOAD: the whole file */
    .long end - file, end - file, 5, 4
    .long 4, note - file                        /* PT_NOTE */
    .long BASE + note - file, BASE + note - file
    .long start - note, start - note, 4, 4
note:
    .long 4, 8, 18                              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long BASE + start - file, 0
start:
    movb $0x00, %al
    outb %al, $0xf4
0:  hlt                                         /* a machine without an exit port */
    jmp 0b
end:

    .section .note.GNU-stack, "", @progbits

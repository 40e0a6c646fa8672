# The firmware of the guest that KVM is tried with (trial.rs has its bytes): from reset through protected mode to 64
# bits with paging, which every system on a stand-in needs, then twenty million stores; then it says that it is through.
# as --64 trial.s -o trial.o && ld -m elf_x86_64 -Ttext 0 --oformat binary trial.o -o trial.bin
.code16
.org 0
start:
 cli
 xor %ax,%ax
 mov %ax,%ss
 mov $0x7000,%sp
 mov $0xf000,%ax
 mov %ax,%ds
 # page tables at 0x1000..0x3fff
 xor %ax,%ax
 mov %ax,%es
 cld
 mov $0x1000,%di
 mov $0x1800,%cx
 rep stosw
 movl $0x2003,%es:0x1000
 movl $0x3003,%es:0x2000
 movl $0x83,%es:0x3000
 lgdtl gdtr
 mov %cr4,%eax
 or $0x20,%eax
 mov %eax,%cr4
 mov $0x1000,%eax
 mov %eax,%cr3
 mov $0xc0000080,%ecx
 rdmsr
 or $0x100,%eax
 wrmsr
 mov %cr0,%eax
 or $0x80000001,%eax
 mov %eax,%cr0
 ljmpl $8,$(0xf0000+long)
.code64
long:
 mov $16,%ax
 mov %ax,%ds
 mov %ax,%ss
 mov $0x7000,%rsp
 # memory and arithmetic
 mov $20000000,%ecx
 xor %eax,%eax
1: add %rcx,%rax
 mov %rax,0x5000
 dec %ecx
 jnz 1b
 xor %eax,%eax
 cpuid
 mov $0x501,%dx
 mov $0x2a,%al
 outb %al,%dx
2: hlt
 jmp 2b
.align 8
gdt: .quad 0
 .quad 0x00209a0000000000
 .quad 0x0000920000000000
gdtr: .word 23
 .long 0xf0000+gdt
.org 0xfff0
.code16
 ljmp $0xf000,$start
.org 0x10000

# A system of one sector: says "understudy is up" on the serial port, then about twice a second writes sector 100,
# which begins with "understudy ticks" and a count; powers off when the power button of a q35 machine is pressed,
# saying "understudy is down". as --32 boot_sector.s -o b.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary b.o -o
# b.bin
.code16
 ljmp $0, $begin
begin:
 xor %ax, %ax
 mov %ax, %ds
 mov %ax, %es
 mov %ax, %ss
 mov $0x7c00, %sp
 mov %dl, drive
 mov $up, %si
 call say
# PM1_EN: power button
 mov $0x602, %dx
 mov $0x100, %ax
 out %ax, %dx
 sti
again:
 incl count
 mov $0x4300, %ax
 mov drive, %dl
 mov $packet, %si
 int $0x13
 jc failed
 mov $9, %cx
wait:
 hlt
# PM1_STS
 mov $0x600, %dx
 in %dx, %ax
 test $0x100, %ax
 jnz off
 loop wait
 jmp again
failed:
 mov $wrong, %si
 call say
 mov $9, %cx
 jmp wait
off:
 mov $down, %si
 call say
# PM1_CNT: S5
 mov $0x604, %dx
 mov $0x2000, %ax
 out %ax, %dx
stay:
 hlt
 jmp stay
say:
 lodsb
 test %al, %al
 jz said
 mov %al, %ah
line:
 mov $0x3fd, %dx
 in %dx, %al
 test $0x20, %al
 jz line
 mov %ah, %al
 mov $0x3f8, %dx
 out %al, %dx
 jmp say
said:
 ret
up: .asciz "understudy is up\r\n"
down: .asciz "understudy is down\r\n"
wrong: .asciz "understudy cannot write\r\n"
drive: .byte 0
.align 4
packet: .byte 16, 0
 .word 1, sector, 0
 .quad 100
sector: .ascii "understudy ticks"
count: .long 0
.org 510
 .word 0xaa55

/* The one command that takes interrupts: it halts, and counts who wakes it. */
#include "commands.h"
#include "say.h"

/* The mailbox; counters by vector lie in the page behind it. */
enum { READY = 0, TOTAL = 8, STOP = 16, DEVICE = 24, COUNTERS = 0x1000 };

enum { NMI = 2, FIRST = 0x20, VECTORS = 64, STUB = 16 };
enum { IOAPIC = 0xfec00000, APIC_SPURIOUS = 0x0f0, APIC_EOI = 0x0b0 };
static const u64 APIC = 0xfee00000;

/* Where the third number of the command says that a line leads. */
enum { PIN = 0xff, LEVEL = 1 << 8, PAIR = 1 << 9, NOWHERE = 1 << 10 };

/* interrupts.S */
extern const u8 interrupt_entries[], nmi_entry[];

static u64 mailbox;
static u64 wiring;
static u64 table[2 * (FIRST + VECTORS)] __attribute__((aligned(4096)));

void interrupted(u64 vector)
{
    u64 counter = mailbox + COUNTERS + 8 * vector, device = read64(mailbox + DEVICE);
    /* A level-triggered line falls when its device has been asked. */
    if (device)
        read32(device);
    write64(counter, read64(counter) + 1);
    write64(mailbox + TOTAL, read64(mailbox + TOTAL) + 1);
    if (vector == NMI) {
        /* Nobody is told of its end. */
    } else if (wiring & PAIR) {
        out8(0xa0, 0x20);
        out8(0x20, 0x20);
    } else {
        write32(APIC + APIC_EOI, 0);
    }
    /* A KVM that interprets the guest tells of the end at its next exit only. */
    out8(0x80, 0);
}

/* A 64-bit interrupt gate to the code segment at 8 (SDM vol. 3, 6.14.1). */
static void set_gate(u64 vector, u64 entry)
{
    table[2 * vector] = (entry & 0xffff) | 8 << 16 | 0x8eull << 40 | entry >> 16 << 48;
    table[2 * vector + 1] = entry >> 32;
}

static void load_table(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) descriptor = {sizeof(table) - 1, (u64)table};
    for (u64 n = 0; n < VECTORS; n++)
        set_gate(FIRST + n, (u64)interrupt_entries + STUB * n);
    set_gate(NMI, (u64)nmi_entry);
    __asm__ volatile("lidt %0" : : "m"(descriptor));
    /* What IRETQ loads again must be in the descriptor table, or null. */
    __asm__ volatile("movl %0, %%ss" : : "r"(0));
}

static void ioapic(u32 number, u32 value)
{
    write32(IOAPIC, number);
    write32(IOAPIC + 0x10, value);
}

static void program_pair(u8 vector)
{
    for (u16 chip = 0; chip < 2; chip++) {
        u16 port = chip ? 0xa0 : 0x20;
        out8(port, 0x11);
        out8(port + 1, vector + 8 * chip);
        out8(port + 1, chip ? 2 : 4);
        out8(port + 1, 1);
        out8(port + 1, 0);
    }
}

void interrupts(const u64 *numbers)
{
    u64 vector = numbers[1];
    mailbox = numbers[0];
    wiring = numbers[2];
    ensure(vector >= FIRST && vector < FIRST + VECTORS - 16, "the vector has no entry");
    load_table();
    write32(APIC + APIC_SPURIOUS, 0x1ff);
    if (wiring & PAIR) {
        program_pair(vector);
    } else if (!(wiring & NOWHERE)) {
        u32 entry = 0x10 + 2 * (wiring & PIN);
        ioapic(entry + 1, 0);
        ioapic(entry, vector | (wiring & LEVEL ? 1 << 15 : 0));
    }
    write64(mailbox + READY, 1);
    while (!read64(mailbox + STOP))
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    say("interrupts %u\n", read64(mailbox + TOTAL));
}

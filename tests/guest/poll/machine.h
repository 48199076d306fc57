/* What the processor can do, one instruction a function: a compiler neither moves, merges nor widens
   any of these accesses. */
#pragma once

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 read8(u64 address)
{
    u8 value;
    __asm__ volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
    return value;
}

static inline void write8(u64 address, u8 value)
{
    __asm__ volatile("movb %1, (%0)" : : "r"(address), "q"(value) : "memory");
}

static inline u16 read16(u64 address)
{
    u16 value;
    __asm__ volatile("movw (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void write16(u64 address, u16 value)
{
    __asm__ volatile("movw %1, (%0)" : : "r"(address), "r"(value) : "memory");
}

static inline u32 read32(u64 address)
{
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void write32(u64 address, u32 value)
{
    __asm__ volatile("movl %1, (%0)" : : "r"(address), "r"(value) : "memory");
}

static inline u64 read64(u64 address)
{
    u64 value;
    __asm__ volatile("movq (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void write64(u64 address, u64 value)
{
    __asm__ volatile("movq %1, (%0)" : : "r"(address), "r"(value) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

static inline void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* Keeps the compiler from moving accesses; the processor keeps stores in order anyway. */
static inline void barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

_Noreturn static inline void halt_for_ever(void)
{
    for (;;)
        __asm__ volatile("cli; hlt" : : : "memory");
}

/* Ends the machine with a status: 0 success, 1 failure (QEMU's isa-debug-exit). */
_Noreturn static inline void end(u8 status)
{
    out8(0xf4, status);
    halt_for_ever();
}

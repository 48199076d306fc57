/* Drives virtio devices by polling, without interrupts: virtio 1.3, 2.7 and 3.1, and the transports of 4.1 and 4.2.
   Whatever a device may not do ends the guest with what it was. */
#pragma once

#include "machine.h"

/* A place: the address of a virtio-mmio device, or this and the number of a device on PCI bus 0. */
#define PCI (1ull << 63)

/* 5 */
enum { NET = 1, BLOCK = 2, CONSOLE = 3, ENTROPY = 4, SOCKET = 19 };

struct device {
    int pci;
    /* MMIO: all registers; PCI: the common configuration. */
    u64 registers;
    /* The configuration of the device. */
    u64 config;
    /* PCI: the ISR status, the notifications, and bytes between them. */
    u64 isr, notify, multiplier;
    /* What was agreed on. */
    u64 features;
};

/* Descriptors of a queue. */
enum { SIZE = 8 };

struct queue {
    /* 2.7.5, 2.7.6, 2.7.8 */
    struct {
        u64 address;
        u32 len;
        u16 flags, next;
    } __attribute__((aligned(16))) descriptors[SIZE];
    struct {
        u16 flags, idx, ring[SIZE], used_event;
    } __attribute__((aligned(2))) available;
    struct {
        u16 flags, idx;
        struct {
            u32 id, len;
        } ring[SIZE];
        u16 avail_event;
    } __attribute__((aligned(4))) used;
    const struct device *device;
    u16 number;
    /* Where a notification is written. */
    u64 doorbell;
};

/* A buffer, which the device reads, or writes. */
struct piece {
    const void *start;
    u32 len;
    int written;
};

/* Finds a device of a type, resets it, and agrees on those of some features that it offers, and on
   VIRTIO_F_VERSION_1. */
void find_device(struct device *device, u64 place, u32 type, u64 features);

/* Sets up a queue, before start_device. */
void set_up_queue(struct queue *queue, const struct device *device, u16 number);

void start_device(const struct device *device);

/* Resets a device, and fails unless nothing is left. */
void leave_device(const struct device *device);

/* Makes a chain of one to SIZE pieces available, and tells the device. Chains do not overlap in time. */
void ask(struct queue *queue, const struct piece *pieces, u16 count);

/* Tells whether the chain has come back. */
int is_used(const struct queue *queue);

/* Waits for the chain to come back; returns how much was written. */
u32 wait_for_used(struct queue *queue);

/* Fails unless the device says that a buffer was used, and stops saying so when told. */
void take_interrupt(const struct device *device);

/* FNV-1a, 64 bits. */
u64 checksum(const u8 *bytes, u64 len);

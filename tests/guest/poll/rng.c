/* Drives an entropy device of virtio-mmio by polling: virtio 1.3, 4.2 and 5.4. */
#include "commands.h"
#include "say.h"

/* 4.2.2, table of registers. */
enum {
    MAGIC = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080,
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
};

/* 2.1 */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

enum { VIRT = 0x74726976, ENTROPY = 4, VERSION_1 = 1 << (32 - 32), USED_BUFFER = 1 };

enum { SIZE = 8, NEXT = 1, WRITE = 2, MOST = 4096, GUARD = 0xa5 };

/* Some ten seconds. */
#define PATIENCE 20000000000ull

/* 2.7.5, 2.7.6, 2.7.8 */
static struct {
    u64 address;
    u32 len;
    u16 flags, next;
} descriptors[SIZE] __attribute__((aligned(16)));

static struct {
    u16 flags, idx, ring[SIZE], used_event;
} available __attribute__((aligned(2)));

static struct {
    u16 flags, idx;
    struct {
        u32 id, len;
    } ring[SIZE];
    u16 avail_event;
} used __attribute__((aligned(4)));

/* The byte behind what was asked for must stay as it is. */
static u8 buffer[MOST + 1];

/* Waits until some bits of a register have a value. */
static void wait_for(u64 address, u32 bits, u32 value, const char *what)
{
    u64 begin = rdtsc();
    while ((read32(address) & bits) != value)
        ensure(rdtsc() - begin < PATIENCE, what);
}

static void write_address(u64 address, const void *part)
{
    write32(address, (u64)part);
    write32(address + 4, (u64)part >> 32);
}

static void reset(u64 device)
{
    write32(device + STATUS, 0);
    wait_for(device + STATUS, ~0u, 0, "the status is not 0 after a reset");
}

/* 3.1.1, steps 1 to 6. */
static void agree(u64 device)
{
    ensure(read32(device + MAGIC) == VIRT, "the magic value");
    ensure(read32(device + VERSION) == 2, "the version is not 2");
    ensure(read32(device + DEVICE_ID) == ENTROPY, "it is no entropy device");
    reset(device);
    write32(device + STATUS, ACKNOWLEDGE);
    write32(device + STATUS, ACKNOWLEDGE | DRIVER);
    write32(device + DEVICE_FEATURES_SEL, 1);
    ensure(read32(device + DEVICE_FEATURES) & VERSION_1, "VIRTIO_F_VERSION_1 is not offered");
    write32(device + DRIVER_FEATURES_SEL, 0);
    write32(device + DRIVER_FEATURES, 0);
    write32(device + DRIVER_FEATURES_SEL, 1);
    write32(device + DRIVER_FEATURES, VERSION_1);
    write32(device + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    ensure(read32(device + STATUS) & FEATURES_OK, "the features are refused");
}

/* 4.2.3.2 */
static void set_up_queue(u64 device)
{
    write32(device + QUEUE_SEL, 0);
    ensure(read32(device + QUEUE_READY) == 0, "the queue is ready too early");
    ensure(read32(device + QUEUE_SIZE_MAX) >= SIZE, "the queue is too small");
    write32(device + QUEUE_SIZE, SIZE);
    write_address(device + QUEUE_DESC, descriptors);
    write_address(device + QUEUE_DRIVER, &available);
    write_address(device + QUEUE_DEVICE, &used);
    write32(device + QUEUE_READY, 1);
    ensure(read32(device + QUEUE_READY) == 1, "the queue does not become ready");
}

/* Makes a chain of two descriptors available (2.7.13), and tells the device. */
static void ask(u64 device, u32 len)
{
    u32 first = len / 2;
    descriptors[0].address = (u64)buffer;
    descriptors[0].len = first;
    descriptors[0].flags = NEXT | WRITE;
    descriptors[0].next = 1;
    descriptors[1].address = (u64)&buffer[first];
    descriptors[1].len = len - first;
    descriptors[1].flags = WRITE;
    available.ring[0] = 0;
    barrier();
    available.idx = 1;
    barrier();
    write32(device + QUEUE_NOTIFY, 0);
}

/* Waits for the chain to come back; returns how much was written. */
static u32 wait_for_used(u64 device)
{
    /* The index is the upper half. */
    wait_for((u64)&used, 0xffff0000, 1 << 16, "no buffer comes back");
    ensure(used.ring[0].id == 0, "another chain comes back");
    wait_for(device + INTERRUPT_STATUS, USED_BUFFER, USED_BUFFER, "no used buffer notification");
    write32(device + INTERRUPT_ACK, USED_BUFFER);
    ensure(!(read32(device + INTERRUPT_STATUS) & USED_BUFFER), "it cannot be acknowledged");
    return used.ring[0].len;
}

static int all_equal(u32 len)
{
    for (u32 n = 1; n < len; n++)
        if (buffer[n] != buffer[0])
            return 0;
    return 1;
}

/* FNV-1a, 64 bits. */
static u64 checksum(u32 len)
{
    u64 hash = 0xcbf29ce484222325;
    for (u32 n = 0; n < len; n++)
        hash = (hash ^ buffer[n]) * 0x100000001b3;
    return hash;
}

void rng(const u64 *numbers)
{
    u64 device = numbers[0], len = numbers[1];
    u32 running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    ensure(len >= 2 && len <= MOST, "LEN has to be 2 to 4096");
    buffer[len] = GUARD;

    agree(device);
    set_up_queue(device);
    write32(device + STATUS, running);
    ask(device, len);
    u32 got = wait_for_used(device);

    ensure(got > 0 && got <= len, "the used length");
    ensure(buffer[len] == GUARD, "a byte behind the buffers was written");
    /* By chance once in 2^56. */
    ensure(got < 8 || !all_equal(got), "all bytes are equal");
    ensure(read32(device + STATUS) == running, "the status has changed");
    say("rng %u %x\n", (u64)got, checksum(got));

    reset(device);
    /* 4.2.2.1 */
    ensure(read32(device + INTERRUPT_STATUS) == 0, "a reset leaves an interrupt");
    write32(device + QUEUE_SEL, 0);
    ensure(read32(device + QUEUE_READY) == 0, "a reset leaves the queue ready");
}

#include "virtio.h"

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
    CONFIG = 0x100,
};

/* 4.1.4.3, the common configuration of a PCI device. */
enum {
    PCI_DEVICE_FEATURES_SEL = 0,
    PCI_DEVICE_FEATURES = 4,
    PCI_DRIVER_FEATURES_SEL = 8,
    PCI_DRIVER_FEATURES = 12,
    PCI_STATUS = 20,
    PCI_QUEUE_SEL = 22,
    PCI_QUEUE_SIZE = 24,
    PCI_QUEUE_ENABLE = 28,
    PCI_QUEUE_NOTIFY_OFF = 30,
    PCI_QUEUE_DESC = 32,
};

/* 2.1 */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

/* 2.7.5 */
enum { NEXT = 1, WRITE = 2 };

enum { VIRT = 0x74726976, VERSION_1 = 1 << (32 - 32), USED_BUFFER = 1 };

/* Where a PC has the configuration of all functions (MCFG), and room for BARs. */
#define ECAM 0xe0000000ull
#define BARS 0xc0000000ull
enum { BAR_ROOM = 0x100000, COMMAND = 4, BAR_0 = 0x10, CAPABILITIES = 0x34, MEMORY_AND_MASTER = 6 };

/* 4.1.2, 4.1.4 */
enum { VENDOR = 0x1af4, FIRST_ID = 0x1040, VENDOR_SPECIFIC = 9 };
enum { COMMON_CFG = 1, NOTIFY_CFG = 2, ISR_CFG = 3, DEVICE_CFG = 4 };

/* Some ten seconds. */
#define PATIENCE 20000000000ull

static u32 status(const struct device *device)
{
    return device->pci ? read8(device->registers + PCI_STATUS) : read32(device->registers + STATUS);
}

static void set_status(const struct device *device, u32 value)
{
    if (device->pci)
        write8(device->registers + PCI_STATUS, value);
    else
        write32(device->registers + STATUS, value);
}

static void reset(const struct device *device)
{
    set_status(device, 0);
    for (u64 begin = rdtsc(); status(device) != 0;)
        ensure(rdtsc() - begin < PATIENCE, "the status is not 0 after a reset");
}

static void find_mmio(struct device *device, u64 address, u32 type)
{
    ensure(read32(address + MAGIC) == VIRT, "the magic value");
    ensure(read32(address + VERSION) == 2, "the version is not 2");
    ensure(read32(address + DEVICE_ID) == type, "it is another device than the command is for");
    device->registers = address;
    device->config = address + CONFIG;
}

/* 4.1.4: where a capability says that a structure is, in the only BAR that there may be. */
static void take_capability(struct device *device, u64 capability, u64 bar)
{
    u64 place = bar + read32(capability + 8);
    ensure(read8(capability + 4) == 0, "a structure is not in BAR 0");
    switch (read8(capability + 3)) {
    case COMMON_CFG:
        device->registers = place;
        break;
    case NOTIFY_CFG:
        device->notify = place;
        device->multiplier = read32(capability + 16);
        break;
    case ISR_CFG:
        device->isr = place;
        break;
    case DEVICE_CFG:
        device->config = place;
        break;
    }
}

static void find_pci(struct device *device, u64 number, u32 type)
{
    u64 function = ECAM + (number << 15), bar = BARS + number * BAR_ROOM;
    ensure(number < 32 && read32(function) != ~0u, "no PCI function is there");
    ensure(read32(function) == (VENDOR | (FIRST_ID + type) << 16),
           "it is another device than the command is for");
    write32(function + BAR_0, bar);
    write32(function + BAR_0 + 4, 0);
    write16(function + COMMAND, MEMORY_AND_MASTER);
    unsigned most = 48;
    for (u64 next = read8(function + CAPABILITIES); next; next = read8(function + next + 1)) {
        ensure(most-- > 0, "the capabilities have no end");
        if (read8(function + next) == VENDOR_SPECIFIC)
            take_capability(device, function + next, bar);
    }
    ensure(device->registers && device->notify && device->isr, "a structure is missing");
}

/* Reads, or writes, a half of the features. */
static u32 offered(const struct device *device, u32 half)
{
    u64 registers = device->registers;
    write32(registers + (device->pci ? PCI_DEVICE_FEATURES_SEL : DEVICE_FEATURES_SEL), half);
    return read32(registers + (device->pci ? PCI_DEVICE_FEATURES : DEVICE_FEATURES));
}

static void accept(const struct device *device, u32 half, u32 features)
{
    u64 registers = device->registers;
    write32(registers + (device->pci ? PCI_DRIVER_FEATURES_SEL : DRIVER_FEATURES_SEL), half);
    write32(registers + (device->pci ? PCI_DRIVER_FEATURES : DRIVER_FEATURES), features);
}

/* 3.1.1, steps 1 to 6. */
void find_device(struct device *device, u64 place, u32 type, u64 features)
{
    *device = (struct device){.pci = (place & PCI) != 0};
    if (device->pci)
        find_pci(device, place & ~PCI, type);
    else
        find_mmio(device, place, type);
    reset(device);
    set_status(device, ACKNOWLEDGE);
    set_status(device, ACKNOWLEDGE | DRIVER);
    ensure(offered(device, 1) & VERSION_1, "VIRTIO_F_VERSION_1 is not offered");
    features &= offered(device, 0) | (u64)offered(device, 1) << 32;
    device->features = features | (u64)VERSION_1 << 32;
    accept(device, 0, device->features);
    accept(device, 1, device->features >> 32);
    set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    ensure(status(device) & FEATURES_OK, "the features are refused");
}

/* Addresses are of 64 bits, and written as two halves. */
static void write_address(u64 address, const void *part)
{
    write32(address, (u64)part);
    write32(address + 4, (u64)part >> 32);
}

/* 4.1.5.1.3 */
static void set_up_pci(struct queue *queue, u64 common)
{
    ensure(read16(common + PCI_QUEUE_ENABLE) == 0, "the queue is ready too early");
    ensure(read16(common + PCI_QUEUE_SIZE) >= SIZE, "the queue is too small");
    write16(common + PCI_QUEUE_SIZE, SIZE);
    write_address(common + PCI_QUEUE_DESC, queue->descriptors);
    write_address(common + PCI_QUEUE_DESC + 8, &queue->available);
    write_address(common + PCI_QUEUE_DESC + 16, &queue->used);
    const struct device *device = queue->device;
    queue->doorbell = device->notify + device->multiplier * read16(common + PCI_QUEUE_NOTIFY_OFF);
    write16(common + PCI_QUEUE_ENABLE, 1);
    ensure(read16(common + PCI_QUEUE_ENABLE) == 1, "the queue does not become ready");
}

/* 4.2.3.2 */
static void set_up_mmio(struct queue *queue, u64 registers)
{
    ensure(read32(registers + QUEUE_READY) == 0, "the queue is ready too early");
    ensure(read32(registers + QUEUE_SIZE_MAX) >= SIZE, "the queue is too small");
    write32(registers + QUEUE_SIZE, SIZE);
    write_address(registers + QUEUE_DESC, queue->descriptors);
    write_address(registers + QUEUE_DESC + 0x10, &queue->available);
    write_address(registers + QUEUE_DESC + 0x20, &queue->used);
    queue->doorbell = registers + QUEUE_NOTIFY;
    write32(registers + QUEUE_READY, 1);
    ensure(read32(registers + QUEUE_READY) == 1, "the queue does not become ready");
}

static void select(const struct device *device, u16 number)
{
    if (device->pci)
        write16(device->registers + PCI_QUEUE_SEL, number);
    else
        write32(device->registers + QUEUE_SEL, number);
}

void set_up_queue(struct queue *queue, const struct device *device, u16 number)
{
    queue->device = device;
    queue->number = number;
    select(device, number);
    if (device->pci)
        set_up_pci(queue, device->registers);
    else
        set_up_mmio(queue, device->registers);
}

enum { RUNNING = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK };

void start_device(const struct device *device)
{
    set_status(device, RUNNING);
}

void leave_device(const struct device *device)
{
    ensure(status(device) == RUNNING, "the status has changed");
    reset(device);
    /* 4.1.4.5, 4.2.2.1 */
    u32 left = device->pci ? read8(device->isr) : read32(device->registers + INTERRUPT_STATUS);
    ensure(left == 0, "a reset leaves an interrupt");
    select(device, 0);
    u32 ready = device->pci ? read16(device->registers + PCI_QUEUE_ENABLE)
                            : read32(device->registers + QUEUE_READY);
    ensure(ready == 0, "a reset leaves the queue ready");
}

/* 2.7.13 */
void ask(struct queue *queue, const struct piece *pieces, u16 count)
{
    for (u16 n = 0; n < count; n++) {
        queue->descriptors[n].address = (u64)pieces[n].start;
        queue->descriptors[n].len = pieces[n].len;
        queue->descriptors[n].flags = (pieces[n].written ? WRITE : 0) | (n + 1 < count ? NEXT : 0);
        queue->descriptors[n].next = n + 1;
    }
    queue->available.ring[queue->available.idx % SIZE] = 0;
    barrier();
    queue->available.idx++;
    barrier();
    if (queue->device->pci)
        write16(queue->doorbell, queue->number);
    else
        write32(queue->doorbell, queue->number);
}

int is_used(const struct queue *queue)
{
    barrier();
    u16 idx = queue->used.idx;
    barrier();
    if (idx != queue->available.idx)
        ensure((u16)(idx + 1) == queue->available.idx, "the used index");
    return idx == queue->available.idx;
}

u32 wait_for_used(struct queue *queue)
{
    for (u64 begin = rdtsc(); !is_used(queue);)
        ensure(rdtsc() - begin < PATIENCE, "no buffer comes back");
    u16 last = (u16)(queue->used.idx - 1) % SIZE;
    ensure(queue->used.ring[last].id == 0, "another chain comes back");
    return queue->used.ring[last].len;
}

void take_interrupt(const struct device *device)
{
    u64 begin = rdtsc();
    if (device->pci) {
        /* It is cleared as it is read. */
        while (!(read8(device->isr) & USED_BUFFER))
            ensure(rdtsc() - begin < PATIENCE, "no used buffer notification");
        ensure(!(read8(device->isr) & USED_BUFFER), "it cannot be acknowledged");
        return;
    }
    u64 registers = device->registers;
    while (!(read32(registers + INTERRUPT_STATUS) & USED_BUFFER))
        ensure(rdtsc() - begin < PATIENCE, "no used buffer notification");
    write32(registers + INTERRUPT_ACK, USED_BUFFER);
    ensure(!(read32(registers + INTERRUPT_STATUS) & USED_BUFFER), "it cannot be acknowledged");
}

u64 checksum(const u8 *bytes, u64 len)
{
    u64 hash = 0xcbf29ce484222325;
    for (u64 n = 0; n < len; n++)
        hash = (hash ^ bytes[n]) * 0x100000001b3;
    return hash;
}

/* block: reads and writes a disk (virtio 1.3, 5.2). */
#include "commands.h"
#include "say.h"
#include "virtio.h"

/* 5.2.3, 5.2.6 */
enum { RO = 5, FLUSH_FEATURE = 9 };
enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8 };
enum { OK = 0, IOERR = 1, NEVER = 0xff };

enum { SECTOR = 512, SECTORS = 9, BYTES = SECTORS * SECTOR, ID = 20 };

static struct device device;
static struct queue requests;

static struct {
    u32 type, reserved;
    u64 sector;
} header;
static u8 sectors[BYTES], pattern[BYTES], id[ID + 1], status;

/* Makes a request with its data in two pieces, or without; returns its status. */
static u8 request(u32 type, u64 sector, u8 *data, u32 len)
{
    header.type = type;
    header.sector = sector;
    status = NEVER;
    int written = type == IN || type == GET_ID;
    u32 first = len / 3;
    struct piece pieces[4] = {{&header, sizeof header, 0}};
    u16 count = 1;
    if (len) {
        pieces[count++] = (struct piece){data, first, written};
        pieces[count++] = (struct piece){data + first, len - first, written};
    }
    pieces[count++] = (struct piece){&status, 1, 1};
    ask(&requests, pieces, count);
    u32 used = wait_for_used(&requests);
    take_interrupt(&device);
    barrier();
    ensure(status != OK || used == 1 + (written ? len : 0), "the used length");
    return status;
}

static void past_the_end(u64 capacity)
{
    ensure(request(IN, capacity + 1 - SECTORS, sectors, BYTES) == IOERR, "sectors past the end can be read");
    say("past the end: I/O error\n");
    ensure(request(IN, capacity - SECTORS, sectors, BYTES) == OK, "the last sectors");
}

static void write_and_compare(void)
{
    ensure(device.features >> FLUSH_FEATURE & 1, "the disk cannot be flushed");
    for (u32 n = 0; n < BYTES; n++)
        pattern[n] = n * 7 / 3;
    ensure(request(OUT, SECTORS, pattern, BYTES) == OK, "the write");
    ensure(request(FLUSH, 0, 0, 0) == OK, "the flush");
    ensure(request(IN, SECTORS, sectors, BYTES) == OK, "the second read");
    for (u32 n = 0; n < BYTES; n++)
        ensure(sectors[n] == pattern[n], "what was written is not what is read");
    say("wrote %x\n", checksum(pattern, BYTES));
}

void block(const u64 *numbers)
{
    find_device(&device, numbers[0], BLOCK, 1 << RO | 1 << FLUSH_FEATURE);
    set_up_queue(&requests, &device, 0);
    start_device(&device);
    u64 capacity = read32(device.config) | (u64)read32(device.config + 4) << 32;
    ensure(capacity >= 2 * SECTORS, "the disk is too small");
    ensure(request(GET_ID, 0, id, ID) == OK, "the serial number");
    say("block %u %s\n", capacity, (const char *)id);
    ensure(request(IN, 0, sectors, BYTES) == OK, "the first read");
    say("read %x\n", checksum(sectors, BYTES));
    if (device.features >> RO & 1) {
        ensure(request(OUT, SECTORS, sectors, BYTES) == IOERR, "a disk that cannot be written was written");
        say("read-only: I/O error\n");
    } else {
        write_and_compare();
        past_the_end(capacity);
    }
    leave_device(&device);
}

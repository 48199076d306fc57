/* rng: asks an entropy device (virtio 1.3, 5.4) for bytes. */
#include "commands.h"
#include "say.h"
#include "virtio.h"

enum { MOST = 4096, GUARD = 0xa5 };

static struct device device;
static struct queue requests;

/* The byte behind what was asked for must stay as it is. */
static u8 buffer[MOST + 1];

static int all_equal(u32 len)
{
    for (u32 n = 1; n < len; n++)
        if (buffer[n] != buffer[0])
            return 0;
    return 1;
}

void rng(const u64 *numbers)
{
    u64 len = numbers[1];
    ensure(len >= 2 && len <= MOST, "LEN has to be 2 to 4096");
    buffer[len] = GUARD;

    find_device(&device, numbers[0], ENTROPY, 0);
    set_up_queue(&requests, &device, 0);
    start_device(&device);
    u32 first = len / 2;
    ask(&requests, (struct piece[]){{buffer, first, 1}, {buffer + first, len - first, 1}}, 2);
    u32 got = wait_for_used(&requests);
    take_interrupt(&device);

    ensure(got > 0 && got <= len, "the used length");
    ensure(buffer[len] == GUARD, "a byte behind the buffers was written");
    /* By chance once in 2^56. */
    ensure(got < 8 || !all_equal(got), "all bytes are equal");
    say("rng %u %x\n", (u64)got, checksum(buffer, got));
    leave_device(&device);
}

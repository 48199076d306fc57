/* console: a conversation by a console without ports (virtio 1.3, 5.3). */
#include "commands.h"
#include "say.h"
#include "virtio.h"

enum { RECEIVE = 0, TRANSMIT = 1, LONGEST = 128, PIECE = 64 };

static struct device device;
static struct queue receive, transmit;
static u8 incoming[PIECE], line[LONGEST];
static u32 len;
static u64 lines;

static u8 capital(u8 byte)
{
    return byte >= 'a' && byte <= 'z' ? byte - 0x20 : byte;
}

/* Returns the line in capitals; tells whether it was the last one. */
static int answer(void)
{
    if (len == 4 && line[0] == 'B' && line[1] == 'Y' && line[2] == 'E')
        return 1;
    ask(&transmit, (struct piece[]){{line, len, 0}}, 1);
    ensure(wait_for_used(&transmit) == 0, "a line that goes out was written");
    len = 0;
    lines++;
    return 0;
}

/* Takes bytes that came; tells whether they end the conversation. */
static int take(u32 count)
{
    for (u32 n = 0; n < count; n++) {
        ensure(len < LONGEST, "the line is too long");
        line[len++] = capital(incoming[n]);
        if (incoming[n] == '\n' && answer())
            return 1;
    }
    return 0;
}

void console(const u64 *numbers)
{
    u32 came;
    find_device(&device, numbers[0], CONSOLE, 0);
    set_up_queue(&receive, &device, RECEIVE);
    set_up_queue(&transmit, &device, TRANSMIT);
    start_device(&device);
    do {
        ask(&receive, (struct piece[]){{incoming, PIECE, 1}}, 1);
        came = wait_for_used(&receive);
        ensure(came > 0 && came <= PIECE, "the used length");
    } while (!take(came));
    say("console %u lines\n", lines);
    leave_device(&device);
}

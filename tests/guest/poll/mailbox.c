/* Commands that work with a host which looks on: they share a mailbox, a page of u64. The processor
   makes stores visible in the order in which they are written here. */
#include "commands.h"
#include "say.h"

/* churn: what the host reads and writes in the mailbox. */
enum { BEGUN = 0, DONE = 8, STOP = 16, CAPACITY = 24, LIMIT = 32, LOG = 0x1000 };

/* dirty: the same. */
enum { REQUEST = 0, COMPLETED = 8, SEED = 24 };

enum { PAGE = 0x1000, MULTIPLIER = 2654435761u };

/* Waits for the host to say how large its log is; 0 if it says to stop instead. */
static u64 wait_for_capacity(u64 mailbox)
{
    u64 capacity = 0;
    while (!read64(mailbox + STOP) && !(capacity = read64(mailbox + CAPACITY)))
        pause();
    ensure((capacity & (capacity - 1)) == 0, "the capacity of the log is no power of two");
    return capacity;
}

/* Waits until the host lets access `seq` happen, or says to stop. */
static void wait_for_limit(u64 mailbox, u64 seq)
{
    while (seq > read64(mailbox + LIMIT) && !read64(mailbox + STOP))
        pause();
}

void churn(const u64 *numbers)
{
    u64 address = numbers[0], cells = numbers[1], mailbox = numbers[2], seq = 0;
    ensure(cells != 0, "churn needs cells");
    u64 capacity = wait_for_capacity(mailbox);
    while (capacity) {
        seq++;
        wait_for_limit(mailbox, seq);
        u64 cell = address + seq % cells * 8;
        write64(mailbox + BEGUN, seq);
        write64(cell, seq);
        write64(mailbox + LOG + (seq & (capacity - 1)) * 8, read64(cell));
        write64(mailbox + DONE, seq);
        if (read64(mailbox + STOP))
            break;
    }
    say("churn %u\n", seq);
}

static void write_a_third(u64 start, u64 pages, u64 seed)
{
    for (u64 index = 0; index < pages; index++)
        if (((u32)index * MULTIPLIER + (u32)seed) % 3 == 0)
            write64(start + index * PAGE, seed ^ index);
}

void dirty(const u64 *numbers)
{
    u64 start = numbers[0], pages = numbers[1], mailbox = numbers[2], rounds = 0;
    u64 completed = read64(mailbox + COMPLETED);
    while (!read64(mailbox + STOP)) {
        u64 request = read64(mailbox + REQUEST);
        if (request == completed) {
            pause();
            continue;
        }
        write_a_third(start, pages, read64(mailbox + SEED));
        completed = request;
        write64(mailbox + COMPLETED, completed);
        rounds++;
    }
    say("dirty %u\n", rounds);
}

/* hammer: the same. */
enum { COUNT = 0 };

enum { READ, WRITE, PORT, AT_ONCE = 16 };

void hammer(const u64 *numbers)
{
    u64 kind = numbers[0], address = numbers[1], mailbox = numbers[2], count = 0;
    ensure(kind <= PORT, "hammer knows no such kind of access");
    while (!read64(mailbox + STOP)) {
        for (u64 n = 0; n < AT_ONCE; n++) {
            if (kind == READ)
                read32(address);
            else if (kind == WRITE)
                write32(address, 0);
            else
                out8(address, 0);
        }
        count += AT_ONCE;
        write64(mailbox + COUNT, count);
    }
    say("hammer %u\n", count);
}

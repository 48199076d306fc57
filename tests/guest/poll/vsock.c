/* vsock: connects to the host, which sends back what it gets (virtio 1.3, 5.10). */
#include "commands.h"
#include "say.h"
#include "virtio.h"

enum { RECEIVE = 0, TRANSMIT = 1, EVENT = 2 };

/* 5.10.6 */
enum { REQUEST = 1, RESPONSE = 2, RST = 3, SHUTDOWN = 4, RW = 5, CREDIT_UPDATE = 6, CREDIT_REQUEST = 7 };
enum { STREAM = 1, BOTH_WAYS = 3, HOST = 2, PORT = 1234 };

/* More than a connection has room for goes there and back, a few thousand bytes at a time. */
enum { LEN = 40000, PIECE = 3000, ROOM = 8192 };

struct header {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

static struct device device;
static struct queue receive, transmit, event;
static u64 cid;
static u32 port, sent, got, peer_room, peer_taken;
static int there, over;

static struct header outgoing;
static struct {
    struct header header;
    u8 data[ROOM];
} __attribute__((packed)) incoming;
static u8 bytes[LEN], echoed[LEN];

static void send(u16 op, const u8 *data, u32 len)
{
    outgoing = (struct header){
        .src_cid = cid,
        .dst_cid = HOST,
        .src_port = PORT,
        .dst_port = port,
        .len = len,
        .type = STREAM,
        .op = op,
        .flags = op == SHUTDOWN ? BOTH_WAYS : 0,
        .buf_alloc = ROOM,
        .fwd_cnt = got,
    };
    ask(&transmit, (struct piece[]){{&outgoing, sizeof outgoing, 0}, {data, len, 0}}, len ? 2 : 1);
    ensure(wait_for_used(&transmit) == 0, "a packet that goes out was written");
}

static void offer(void)
{
    ask(&receive, (struct piece[]){{&incoming, sizeof incoming, 1}}, 1);
}

/* Keeps the bytes that came; there is always room for more. */
static void keep(u32 len)
{
    ensure(len <= LEN - got, "more comes back than went there");
    for (u32 n = 0; n < len; n++)
        echoed[got++] = incoming.data[n];
    send(CREDIT_UPDATE, 0, 0);
}

static void take(const struct header *header, u32 used)
{
    ensure(used >= sizeof *header && used - sizeof *header == header->len, "the used length");
    ensure(header->src_cid == HOST && header->dst_cid == cid && header->src_port == port &&
               header->dst_port == PORT && header->type == STREAM,
           "a packet of another connection");
    peer_room = header->buf_alloc;
    peer_taken = header->fwd_cnt;
    switch (header->op) {
    case RESPONSE:
        there = 1;
        break;
    case RST:
    case SHUTDOWN:
        over = 1;
        break;
    case RW:
        keep(header->len);
        break;
    case CREDIT_REQUEST:
        send(CREDIT_UPDATE, 0, 0);
        break;
    case CREDIT_UPDATE:
        break;
    default:
        fail("an unknown operation");
    }
}

static void take_next(void)
{
    u32 used = wait_for_used(&receive);
    take(&incoming.header, used);
    offer();
}

/* Sends as much as the host has room for; tells whether that was anything. */
static int send_some(void)
{
    u32 room = peer_room - (sent - peer_taken), len = LEN - sent;
    len = len < room ? len : room;
    len = len < PIECE ? len : PIECE;
    if (len)
        send(RW, bytes + sent, len);
    sent += len;
    return len != 0;
}

static void echo(void)
{
    for (u32 n = 0; n < LEN; n++)
        bytes[n] = n * 5 / 3;
    while (got < LEN) {
        if (!send_some() || is_used(&receive))
            take_next();
        ensure(!over, "the host ends the connection");
    }
    for (u32 n = 0; n < LEN; n++)
        ensure(echoed[n] == bytes[n], "what comes back is not what went there");
}

void vsock(const u64 *numbers)
{
    port = numbers[1];
    find_device(&device, numbers[0], SOCKET, 0);
    set_up_queue(&receive, &device, RECEIVE);
    set_up_queue(&transmit, &device, TRANSMIT);
    set_up_queue(&event, &device, EVENT);
    start_device(&device);
    cid = read32(device.config) | (u64)read32(device.config + 4) << 32;
    say("vsock cid %u\n", cid);
    offer();
    send(REQUEST, 0, 0);
    take_next();
    ensure(there, "the host refuses the connection");
    echo();
    say("echo %x\n", checksum(echoed, LEN));
    send(SHUTDOWN, 0, 0);
    while (!over)
        take_next();
    leave_device(&device);
}

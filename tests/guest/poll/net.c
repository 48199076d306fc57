/* net: sends a frame, and sends back what comes (virtio 1.3, 5.1). */
#include "commands.h"
#include "say.h"
#include "virtio.h"

/* 5.1.3, 5.1.6 */
enum { MAC_FEATURE = 5, RECEIVE = 0, TRANSMIT = 1, HEADER = 12 };

/* An Ethernet frame: to, from, type. */
enum { TO = 0, FROM = 6, TYPE = 12, PAYLOAD = 14, LONGEST = 2048, HELLO = 60, FRAMES = 100 };

static struct device device;
static struct queue receive, transmit;
static u8 mac[6], incoming[HEADER + LONGEST], outgoing[HEADER + LONGEST];

static void copy(u8 *to, const u8 *from, u32 len)
{
    while (len--)
        *to++ = *from++;
}

/* Sends what is in `outgoing`, whose header is all zeros: nothing is left to the host. */
static void send(u32 len)
{
    ask(&transmit, (struct piece[]){{outgoing, HEADER + len, 0}}, 1);
    ensure(wait_for_used(&transmit) == 0, "a frame that goes out was written");
}

static void offer(void)
{
    ask(&receive, (struct piece[]){{incoming, sizeof incoming, 1}}, 1);
}

static void say_hello(void)
{
    u8 *frame = outgoing + HEADER;
    for (u32 n = 0; n < 6; n++)
        frame[TO + n] = 0xff;
    copy(frame + FROM, mac, 6);
    copy(frame + TYPE, (const u8 *)"\x88\xb5hello", 7);
    send(HELLO);
}

/* Sends back the frame in `incoming`, with the bytes behind its header turned around. */
static void send_back(u32 len)
{
    const u8 *came = incoming + HEADER;
    u8 *frame = outgoing + HEADER;
    copy(frame + TO, came + FROM, 6);
    copy(frame + FROM, mac, 6);
    copy(frame + TYPE, came + TYPE, 2);
    for (u32 n = PAYLOAD; n < len; n++)
        frame[n] = came[len - 1 - (n - PAYLOAD)];
    send(len);
}

void net(const u64 *numbers)
{
    find_device(&device, numbers[0], NET, 1 << MAC_FEATURE);
    ensure(device.features >> MAC_FEATURE & 1, "the device has no address");
    set_up_queue(&receive, &device, RECEIVE);
    set_up_queue(&transmit, &device, TRANSMIT);
    start_device(&device);
    for (u32 n = 0; n < 6; n++)
        mac[n] = read8(device.config + n);
    say("net [%b, %b, %b, %b, %b, %b]\n", (u64)mac[0], (u64)mac[1], (u64)mac[2], (u64)mac[3], (u64)mac[4],
        (u64)mac[5]);

    offer();
    say_hello();
    u64 bytes = 0;
    for (u32 n = 0; n < FRAMES; n++) {
        u32 used = wait_for_used(&receive);
        ensure(used <= sizeof incoming && used >= HEADER + PAYLOAD, "the used length");
        send_back(used - HEADER);
        bytes += used - HEADER;
        offer();
    }
    say("returned %u frames, %u bytes\n", (u64)FRAMES, bytes);
    leave_device(&device);
}

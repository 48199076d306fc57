//! Flow control of one connection (virtio 1.3, 5.10.6.3): each side says how many bytes it has room for
//! (`buf_alloc`) and how many have left that room since the connection began (`fwd_cnt`). All counts wrap.
//!
//! ```text
//!   to the guest:    sent ──────────────> room = guest's buf_alloc - (sent - guest's fwd_cnt)
//!   from the guest:  received ─> held = received - forwarded <= BUF_ALLOC ─> forwarded to the host
//! ```

use std::num::Wrapping;

use super::packet::Header;

/// Bytes of a connection that the device takes from the guest before the host's program does: what it says in
/// `buf_alloc`. There is memory for them only where the host's socket takes less than what came.
pub const BUF_ALLOC: u32 = 0x1_0000;

/// What both sides have sent and said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    sent: Wrapping<u32>,
    guest_alloc: u32,
    guest_forwarded: Wrapping<u32>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// What the guest knows of `forwarded`.
    told: Wrapping<u32>,
}

impl Credit {
    /// Hears what a packet of the guest says of its room.
    ///
    /// Packets of one connection may overtake each other on their way into the queue, and a hostile driver
    /// says anything: a count that is behind the last one, or ahead of what was sent, is not taken.
    pub fn hear(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        let forwarded = Wrapping(header.fwd_cnt);
        if forwarded - self.guest_forwarded <= self.sent - self.guest_forwarded {
            self.guest_forwarded = forwarded;
        }
    }

    /// Returns how many bytes may be sent.
    pub fn room(&self) -> u32 {
        let on_their_way = self.sent - self.guest_forwarded;
        self.guest_alloc.saturating_sub(on_their_way.0)
    }

    /// Takes bytes into account that are sent.
    pub fn send(&mut self, len: u32) {
        self.sent += len;
    }

    /// Takes bytes into account that have come. False if the guest was not allowed to send as many: they do
    /// not count then.
    #[must_use]
    pub fn receive(&mut self, len: u32) -> bool {
        let allowed = len <= BUF_ALLOC - self.held();
        if allowed {
            self.received += len;
        }
        allowed
    }

    /// Returns how many bytes have come and are not forwarded.
    pub fn held(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// Takes bytes into account that the host has taken.
    pub fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.held(), "they have come before");
        self.forwarded += len;
    }

    /// Tells whether the guest should hear that there is room: it may think that half of it is in use.
    pub fn is_update_due(&self) -> bool {
        let untold = self.forwarded != self.told;
        untold && (self.received - self.told).0 >= BUF_ALLOC / 2
    }

    /// Returns `buf_alloc` and `fwd_cnt` for a packet to the guest, which knows them from now on.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUF_ALLOC, self.told.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn the_guest_gets_as_much_as_it_has_room_for() {
        let mut credit = Credit::default();
        assert_eq!(credit.room(), 0, "nothing was said");
        credit.hear(&says(100, 0));
        credit.send(70);
        assert_eq!(credit.room(), 30);
        credit.hear(&says(100, 50));
        assert_eq!(credit.room(), 80);
        credit.hear(&says(10, 50));
        assert_eq!(credit.room(), 0, "it has less than is on its way");
        credit.hear(&says(u32::MAX, 70));
        assert_eq!(credit.room(), u32::MAX);
    }

    #[test]
    fn counts_wrap() {
        let mut credit = Credit::default();
        for round in 0..5u64 {
            credit.hear(&says(u32::MAX, (round * 0xffff_ff00) as u32));
            assert_eq!(credit.room(), u32::MAX, "{round}");
            credit.send(0xffff_ff00);
            assert_eq!(credit.room(), 0xff);
        }
        let mut credit = Credit::default();
        for _ in 0..0x3_0000u32 {
            assert!(credit.receive(0x8000));
            credit.forward(0x8000);
        }
        assert_eq!(
            (credit.held(), credit.tell()),
            (0, (BUF_ALLOC, 0x8000_0000))
        );
    }

    #[test]
    fn a_count_that_cannot_be_is_not_taken() {
        let mut credit = Credit::default();
        credit.hear(&says(100, 0));
        credit.send(50);
        credit.hear(&says(100, 40));
        for wrong in [51, 1000, u32::MAX, 39, 0] {
            credit.hear(&says(100, wrong));
            assert_eq!(credit.room(), 90, "{wrong}");
        }
    }

    #[test]
    fn more_than_was_allowed_does_not_count() {
        let mut credit = Credit::default();
        assert!(!credit.receive(BUF_ALLOC + 1) && !credit.receive(u32::MAX));
        assert!(credit.receive(BUF_ALLOC) && credit.receive(0));
        assert!(!credit.receive(1));
        credit.forward(2);
        assert!(credit.receive(2) && !credit.receive(1));
        assert_eq!(credit.held(), BUF_ALLOC);
    }

    #[test]
    fn an_update_is_due_when_the_guest_may_think_that_half_is_in_use() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUF_ALLOC / 2 - 1));
        credit.forward(100);
        assert!(!credit.is_update_due());
        assert!(credit.receive(1) && credit.is_update_due());
        assert_eq!(credit.tell(), (BUF_ALLOC, 100));
        assert!(!credit.is_update_due());
        assert!(credit.receive(BUF_ALLOC / 2));
        assert!(!credit.is_update_due(), "there is nothing new to say");
    }
}

//! What stands before a frame (virtio 1.3, 5.1.6; `struct virtio_net_hdr_v1`).

/// The header. All zeros is a frame that is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header(pub [u8; Self::LEN]);

impl Header {
    /// Its bytes.
    pub const LEN: usize = 12;
    /// Where the number of buffers is that a received frame takes.
    pub const BUFFERS: usize = 10;

    /// Reads the header of a frame; `None` if that is shorter.
    pub fn of(frame: &[u8]) -> Option<Self> {
        Some(Self(*frame.first_chunk()?))
    }

    /// Tells whether the frame can go as it is: its checksum is there, and it is one segment.
    pub fn is_complete(&self) -> bool {
        const NEEDS_CHECKSUM: u8 = 1;
        let [flags, segmentation, ..] = self.0;
        flags & NEEDS_CHECKSUM == 0 && segmentation == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_complete_with_its_checksum_and_in_one_segment() {
        let header = |flags, segmentation| {
            let mut bytes = [0; Header::LEN];
            (bytes[0], bytes[1]) = (flags, segmentation);
            Header::of(&bytes).unwrap()
        };
        assert!(header(0, 0).is_complete() && header(2, 0).is_complete());
        assert!(!header(1, 0).is_complete() && !header(0, 1).is_complete());
        assert_eq!(Header::of(&[0; 11]), None);
    }
}

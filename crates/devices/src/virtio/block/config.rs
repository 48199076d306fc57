//! The configuration that the driver reads, and what it may rely on (virtio 1.3, 5.2.3 and 5.2.4).

use umbra_block::{SECTOR, Topology};
use umbra_virtio::Features;

/// VIRTIO_BLK_F_SEG_MAX: most buffers of one request's data.
pub const SEG_MAX: Features = Features::bit(2);
/// VIRTIO_BLK_F_RO: the disk may only be read.
pub const RO: Features = Features::bit(5);
/// VIRTIO_BLK_F_BLK_SIZE: the disk's own blocks.
pub const BLK_SIZE: Features = Features::bit(6);
/// VIRTIO_BLK_F_FLUSH: what was written lasts after a flush.
pub const FLUSH: Features = Features::bit(9);
/// VIRTIO_BLK_F_TOPOLOGY: which blocks are best.
pub const TOPOLOGY: Features = Features::bit(10);
/// VIRTIO_BLK_F_CONFIG_WCE: the driver chooses whether writes are cached.
pub const CONFIG_WCE: Features = Features::bit(11);
/// VIRTIO_BLK_F_MQ: several queues.
pub const MQ: Features = Features::bit(12);
/// VIRTIO_BLK_F_DISCARD.
pub const DISCARD: Features = Features::bit(13);
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub const WRITE_ZEROES: Features = Features::bit(14);

/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most buffers of one request's data: a chain is no longer than its queue, and has header and status.
pub const SEGMENTS_MAX: u16 = QUEUE_SIZE - 2;
/// Sectors of one discarded segment.
pub const DISCARD_MAX_SECTORS: u32 = (1 << 22) - 1;
/// Segments of one DISCARD.
pub const DISCARD_MAX_SEGMENTS: u32 = 32;
/// Sectors of one segment of zeros: 128 MiB, as a host may have to write them.
pub const ZEROES_MAX_SECTORS: u32 = 1 << 18;
/// Segments of one WRITE_ZEROES.
pub const ZEROES_MAX_SEGMENTS: u32 = 1;

/// Where the byte is that the driver may write.
pub const WRITEBACK: u64 = 32;
const LEN: usize = 60;

/// What the configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Sectors.
    pub capacity: u64,
    pub topology: Topology,
    pub queues: u16,
    /// Most buffers of one request's data.
    pub segments: u16,
    pub writeback: bool,
}

impl Config {
    /// Returns it as bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let Topology {
            logical_block,
            physical_block,
        } = self.topology;
        let physical = physical_block.max(logical_block);
        let per_physical = physical / logical_block;
        put(0, &self.capacity.to_le_bytes());
        put(12, &u32::from(self.segments).to_le_bytes());
        put(20, &logical_block.to_le_bytes());
        put(24, &[per_physical.trailing_zeros() as u8, 0]);
        // Less than 2^16: blocks are a MiB at most.
        put(26, &(per_physical as u16).to_le_bytes());
        put(WRITEBACK as usize, &[self.writeback.into()]);
        put(34, &self.queues.to_le_bytes());
        put(36, &DISCARD_MAX_SECTORS.to_le_bytes());
        put(40, &DISCARD_MAX_SEGMENTS.to_le_bytes());
        put(44, &(physical / SECTOR as u32).to_le_bytes());
        put(48, &ZEROES_MAX_SECTORS.to_le_bytes());
        put(52, &ZEROES_MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let config = Config {
            capacity: 0x0102_0304_0506_0708,
            topology: Topology {
                logical_block: 512,
                physical_block: 4096,
            },
            queues: 4,
            segments: 126,
            writeback: true,
        };
        let bytes = config.bytes();
        let expected: [(usize, &[u8]); 10] = [
            (0, &[8, 7, 6, 5, 4, 3, 2, 1]),
            (8, &[0; 4]),
            (12, &[126, 0, 0, 0]),
            (20, &[0, 2, 0, 0]),
            (24, &[3, 0, 8, 0, 0, 0, 0, 0]),
            (32, &[1, 0, 4, 0]),
            (36, &[0xff, 0xff, 0x3f, 0]),
            (40, &[32, 0, 0, 0, 8, 0, 0, 0]),
            (48, &[0, 0, 4, 0, 1, 0, 0, 0]),
            (56, &[1, 0, 0, 0]),
        ];
        for (at, field) in expected {
            assert_eq!(&bytes[at..at + field.len()], field, "at {at}");
        }
    }
}

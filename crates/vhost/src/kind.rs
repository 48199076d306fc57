//! What is known of each type of device without asking its back end.

use umbra_virtio::Features;

/// Which device a back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk (virtio 1.3, 5.2).
    Block,
    /// A file system (5.11), which the guest mounts by this tag; `None` if the back end says it.
    Fs {
        /// 1 to 36 bytes.
        tag: Option<String>,
    },
    /// A network interface (5.1) with one pair of queues.
    Net {
        /// Its address.
        mac: [u8; 6],
    },
    /// Sockets (5.10).
    Vsock,
    /// Any other device.
    Other {
        /// Its type (5).
        id: u32,
        /// Bytes of its configuration.
        config_len: usize,
    },
}

/// Bits of a device type (virtio 1.3, 2.2).
pub const DEVICE_BITS: Features = Features::from_low(0xff_ffff | !0u64 << 50);
/// VIRTIO_BLK_F_MQ.
const BLOCK_MQ: Features = Features::bit(12);
/// VIRTIO_BLK_F_SIZE_MAX.
const BLOCK_SIZE_MAX: Features = Features::bit(1);
/// VIRTIO_FS_F_NOTIFICATION: a queue that nobody here has.
const FS_NOTIFICATION: Features = Features::bit(0);
/// VIRTIO_NET_F_MAC and VIRTIO_NET_F_STATUS: both of them the monitor's.
const NET_OURS: Features = Features::bit(5).with(Features::bit(16));
/// Offloads and mergeable buffers: what needs neither a queue of commands nor a field of the configuration, which is
/// the monitor's.
const NET_THEIRS: Features = Features::from_low(0xffff & !(1 << 2 | 1 << 3 | 1 << 5 | 1 << 6));

/// Bytes of a tag.
pub const TAG_MAX: usize = 36;
/// Where in the configuration of a disk the largest segment is.
const BLOCK_SIZE_MAX_AT: std::ops::Range<usize> = 8..12;
/// Where in the configuration of a disk the number of queues is.
const BLOCK_QUEUES_AT: usize = 34;

impl Kind {
    /// Returns the device type.
    pub fn id(&self) -> u32 {
        match self {
            Self::Net { .. } => 1,
            Self::Block => 2,
            Self::Vsock => 19,
            Self::Fs { .. } => 26,
            Self::Other { id, .. } => *id,
        }
    }

    /// Tells whether every request ends soon, and by itself.
    pub fn ends_requests(&self) -> bool {
        matches!(self, Self::Block)
    }

    /// Returns how many bytes of configuration a back end is asked for: exactly those that every one of this
    /// type has, for some do not answer if it is more.
    pub fn config_len(&self) -> usize {
        match self {
            // Up to the fields of VIRTIO_BLK_F_WRITE_ZEROES.
            Self::Block => 60,
            Self::Fs { .. } => TAG_MAX + 4,
            Self::Net { .. } => 12,
            Self::Vsock => 8,
            Self::Other { config_len, .. } => *config_len,
        }
    }

    /// Tells whether the configuration is the back end's.
    pub fn has_their_config(&self) -> bool {
        match self {
            Self::Fs { tag } => tag.is_none(),
            Self::Net { .. } => false,
            Self::Block | Self::Vsock => true,
            Self::Other { config_len, .. } => *config_len != 0,
        }
    }

    /// Returns the configuration as far as it is ours.
    pub fn our_config(&self, queues: u16) -> Vec<u8> {
        let mut config = vec![0; self.config_len()];
        match self {
            Self::Fs { tag: Some(tag) } => {
                let len = tag.len().min(TAG_MAX);
                config[..len].copy_from_slice(&tag.as_bytes()[..len]);
                // One queue is for what has priority.
                let requests = u32::from(queues).saturating_sub(1);
                config[TAG_MAX..].copy_from_slice(&requests.to_le_bytes());
            }
            Self::Net { mac } => {
                config[..6].copy_from_slice(mac);
                // VIRTIO_NET_S_LINK_UP.
                config[6] = 1;
                config[8] = 1;
            }
            _ => {}
        }
        config
    }

    /// Makes a configuration of the back end's fit to the queues that there are.
    pub fn adapt_config(&self, config: &mut [u8], queues: u16) {
        match self {
            Self::Block => {
                let place = &mut config[BLOCK_QUEUES_AT..BLOCK_QUEUES_AT + 2];
                place.copy_from_slice(&queues.to_le_bytes());
            }
            Self::Fs { .. } => {
                let requests = u32::from(queues).saturating_sub(1);
                config[TAG_MAX..TAG_MAX + 4].copy_from_slice(&requests.to_le_bytes());
            }
            _ => {}
        }
    }

    /// Returns what of a back end's features is passed on, and what is added to it.
    pub fn features(&self, offered: Features, queues: u16, config: &[u8]) -> Features {
        let passed = offered.common(DEVICE_BITS);
        match self {
            Self::Block => {
                let many = if queues == 1 {
                    BLOCK_MQ
                } else {
                    Features::NONE
                };
                // qemu-storage-daemon offers it with a maximum of 0, of which Linux makes 4096.
                let any = match config.get(BLOCK_SIZE_MAX_AT) {
                    Some([0, 0, 0, 0]) => BLOCK_SIZE_MAX,
                    _ => Features::NONE,
                };
                passed.without(many).without(any)
            }
            Self::Fs { .. } => passed.without(FS_NOTIFICATION),
            Self::Net { .. } => passed.common(NET_THEIRS).with(NET_OURS),
            Self::Vsock | Self::Other { .. } => passed,
        }
    }

    /// Returns what of the features that a driver has accepted is a back end's business.
    pub fn theirs(&self, accepted: Features) -> Features {
        let device = accepted.common(DEVICE_BITS);
        let theirs = match self {
            Self::Net { .. } => device.without(NET_OURS),
            _ => device,
        };
        theirs.with(Features::VERSION_1)
    }

    /// Says what a guest has while there is no back end.
    pub fn meanwhile(&self) -> &'static str {
        match self {
            Self::Block | Self::Other { .. } => "requests wait until it is back",
            Self::Fs { .. } => "its mounts are dead",
            Self::Net { .. } => "frames wait until it is back",
            Self::Vsock => "its connections are reset",
        }
    }

    /// Returns how many queues there are if nothing else is asked for, and how many more each further one
    /// brings.
    pub fn queues(&self) -> u16 {
        match self {
            Self::Block | Self::Other { .. } => 1,
            Self::Fs { .. } | Self::Net { .. } => 2,
            Self::Vsock => 3,
        }
    }

    /// Returns how many descriptors queue `index` has if nothing else is asked for. A back end does not say how
    /// many it takes, but refuses more.
    pub fn queue_size(&self, index: u16) -> u16 {
        match self {
            Self::Fs { .. } => 1024,
            Self::Block | Self::Net { .. } | Self::Other { .. } => 256,
            // There is one event, and it is rare.
            Self::Vsock if index == 2 => 8,
            Self::Vsock => 128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [Kind; 5] {
        let tag = Some("share".to_owned());
        [
            Kind::Block,
            Kind::Fs { tag },
            Kind::Net { mac: [2; 6] },
            Kind::Vsock,
            Kind::Other {
                id: 4,
                config_len: 0,
            },
        ]
    }

    #[test]
    fn bits_of_rings_and_transports_are_never_passed_on() {
        let everything = Features::from_low(u64::MAX);
        for kind in all() {
            let offered = kind.features(everything, 2, &[]);
            for bit in 24..50 {
                assert!(!offered.has(Features::bit(bit)), "{kind:?} {bit}");
            }
            let told = kind.theirs(everything);
            for bit in (24..50).filter(|bit| *bit != 32) {
                assert!(!told.has(Features::bit(bit)), "{kind:?} {bit}");
            }
        }
    }

    #[test]
    fn configurations_say_how_many_queues_there_are() {
        let mut config = vec![0xff; Kind::Block.config_len()];
        Kind::Block.adapt_config(&mut config, 4);
        assert_eq!(config[33..37], [0xff, 4, 0, 0xff]);
        let fs = &all()[1];
        let config = fs.our_config(3);
        assert_eq!(config[..6], *b"share\0");
        assert_eq!(config[36..], [2, 0, 0, 0]);
    }

    #[test]
    fn an_interface_has_no_mtu_that_nobody_says() {
        let everything = Features::from_low(u64::MAX);
        let offered = all()[2].features(everything, 2, &[]);
        assert!(!offered.has(Features::bit(3)) && offered.has(NET_OURS));
    }

    #[test]
    fn a_disk_of_one_queue_offers_no_more() {
        assert!(!Kind::Block.features(BLOCK_MQ, 1, &[]).has(BLOCK_MQ));
        assert!(Kind::Block.features(BLOCK_MQ, 2, &[]).has(BLOCK_MQ));
    }

    #[test]
    fn a_disk_whose_largest_segment_is_nothing_has_no_largest_segment() {
        let mut config = [0; 60];
        let offers = |config: &[u8]| Kind::Block.features(BLOCK_SIZE_MAX, 1, config);
        assert!(!offers(&config).has(BLOCK_SIZE_MAX));
        config[9] = 0x10;
        assert!(offers(&config).has(BLOCK_SIZE_MAX));
    }
}

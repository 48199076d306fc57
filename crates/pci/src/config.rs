//! The configuration space of one function, as registers that know which of their bits can be written
//! (PCI Local Bus 3.0, 6.1 and 6.2; header type 0).
//!
//! ```text
//!   0x00  vendor, device          0x10  BAR 0 to 5          0x34  first capability
//!   0x04  command, status         0x2c  subsystem           0x3c  interrupt line, pin (none)
//!   0x08  revision, class         0x40  capabilities, one behind the other, to 0xff
//! ```
//! A BAR answers a write of all ones with its size by itself: the bits below the size cannot be
//! written. Beyond 0xff there is nothing, which reads as all ones: no extended capabilities.

use umbra_slots::{Gpa, GpaRange};

/// Bytes of a configuration space without extended registers.
pub const CONFIG_LEN: usize = 256;

/// Offset of the command register.
pub const COMMAND: u16 = 0x04;
const STATUS: usize = 0x06;
const FIRST_BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Command: the function answers to its memory BARs.
pub const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may send messages.
pub const BUS_MASTER: u16 = 1 << 2;
/// Command: no INTx. Kept for the driver; there is no INTx.
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status: there are capabilities.
const CAPABILITIES_LIST: u16 = 1 << 4;

/// Type bits of a memory BAR (6.2.5.1).
const BAR_64: u32 = 0b10 << 1;
const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Who a function says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, sub-class, interface, from the highest byte of the lower 24 bits on.
    pub class: u32,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

/// How wide the address of a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32 bits, one register.
    Bits32,
    /// 64 bits, two registers; marked prefetchable, so that a bridge's high window takes it.
    Bits64,
}

/// Why a configuration space cannot be made so: a mistake of the device's author.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such size.
    #[error("a BAR of {len:#x} bytes is no power of two from 16 on that fits its address")]
    BarSize {
        /// What was asked for.
        len: u64,
    },
    /// No such register, or it belongs to another BAR.
    #[error("BAR {index} is taken, or there is no such register")]
    BarTaken {
        /// What was asked for.
        index: u8,
    },
    /// The space is full.
    #[error("a capability of {len} bytes does not fit behind {end:#x}")]
    CapabilityRoom {
        /// Its length.
        len: usize,
        /// Where the last one ends.
        end: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    len: u64,
    width: Width,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    /// Bits that the guest can write.
    writable: [u8; CONFIG_LEN],
    bars: [Option<Bar>; 6],
    /// Where the pointer to the next capability goes, and where that would begin.
    link: usize,
    end: usize,
}

impl ConfigSpace {
    /// Makes a space without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            bars: [None; 6],
            link: CAPABILITIES,
            end: FIRST_CAPABILITY,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        space.put(0x08, &class.to_le_bytes());
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        let command = MEMORY_SPACE | BUS_MASTER | INTERRUPT_DISABLE;
        space.let_write(COMMAND.into(), &command.to_le_bytes());
        // Cache line size and interrupt line: kept for the driver.
        space.let_write(0x0c, &[0xff]);
        space.let_write(0x3c, &[0xff]);
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn let_write(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..][..mask.len()].copy_from_slice(mask);
    }

    /// Adds a memory BAR of `len` bytes at register `index`, and the one behind it for 64 bits.
    ///
    /// # Errors
    /// If the size or the register will not do.
    pub fn add_bar(&mut self, index: u8, len: u64, width: Width) -> Result<(), ConfigError> {
        let limit = match width {
            Width::Bits32 => 1 << 31,
            Width::Bits64 => 1 << 51,
        };
        if !len.is_power_of_two() || !(16..=limit).contains(&len) {
            return Err(ConfigError::BarSize { len });
        }
        let index = usize::from(index);
        let registers = match width {
            Width::Bits32 => 1,
            Width::Bits64 => 2,
        };
        let free = |register: usize| register < 6 && !self.is_bar_register(register);
        if !(index..index + registers).all(free) {
            let index = index as u8;
            return Err(ConfigError::BarTaken { index });
        }
        let mask = !(len - 1);
        let at = FIRST_BAR + 4 * index;
        self.let_write(at, &mask.to_le_bytes()[..4 * registers]);
        if width == Width::Bits64 {
            self.put(at, &(BAR_64 | BAR_PREFETCHABLE).to_le_bytes());
        }
        self.bars[index] = Some(Bar { len, width });
        Ok(())
    }

    /// Tells whether a BAR uses the register.
    fn is_bar_register(&self, register: usize) -> bool {
        let wide = |bar: &Bar| bar.width == Width::Bits64;
        let before = register.checked_sub(1).and_then(|n| self.bars[n].as_ref());
        self.bars[register].is_some() || before.is_some_and(wide)
    }

    /// Adds a capability: `body` is what follows its identifier and the pointer to the next one, of
    /// which the guest can write the bits of `writable` (as long as `body`, or shorter). Returns where the capability
    /// begins.
    ///
    /// # Errors
    /// If there is no room.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let (at, len) = (self.end, 2 + body.len());
        if len > CONFIG_LEN - at || writable.len() > body.len() {
            return Err(ConfigError::CapabilityRoom { len, end: at });
        }
        self.put(self.link, &[at as u8]);
        self.put(STATUS, &CAPABILITIES_LIST.to_le_bytes());
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.let_write(at + 2, writable);
        self.link = at + 1;
        self.end = (at + len).next_multiple_of(4);
        Ok(at as u16)
    }

    /// Reads; bytes beyond the end are all ones.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(register)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes what can be written.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        for (at, byte) in (usize::from(register)..).zip(data) {
            if let Some(mask) = self.writable.get(at) {
                self.bytes[at] = self.bytes[at] & !mask | byte & mask;
            }
        }
    }

    /// Returns 16 bits; all ones beyond the end.
    pub fn word(&self, register: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(register, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Returns 32 bits; all ones beyond the end.
    pub fn double_word(&self, register: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Tells whether all of `bits` of the command register are set.
    pub fn command_has(&self, bits: u16) -> bool {
        self.word(COMMAND) & bits == bits
    }

    /// Returns the addresses that the function answers to by a BAR: `None` if there is no such BAR,
    /// memory space is off, or the address cannot be one.
    pub fn decoded(&self, index: u8) -> Option<GpaRange> {
        let bar = (*self.bars.get(usize::from(index))?)?;
        if !self.command_has(MEMORY_SPACE) {
            return None;
        }
        let register = FIRST_BAR as u16 + 4 * u16::from(index);
        let low = self.double_word(register) & !0xf;
        let high = match bar.width {
            Width::Bits32 => 0,
            Width::Bits64 => self.double_word(register + 4),
        };
        GpaRange::new(Gpa(u64::from(high) << 32 | u64::from(low)), bar.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0x01_02_03,
            subsystem: (0x1111, 0x2222),
        })
    }

    fn set(space: &mut ConfigSpace, register: u16, value: u32) -> u32 {
        space.write(register, &value.to_le_bytes());
        space.double_word(register)
    }

    #[test]
    fn a_header_says_who_the_function_is() {
        let space = space();
        let table = [
            (0x00, 0x1044_1af4),
            (0x04, 0),
            (0x08, 0x0102_0301),
            (0x0c, 0),
            (0x10, 0),
            (0x2c, 0x2222_1111),
            (0x34, 0),
            (0x3c, 0),
            (0xfe, 0xffff_0000),
            (0x100, u32::MAX),
        ];
        for (register, value) in table {
            assert_eq!(space.double_word(register), value, "{register:#x}");
        }
    }

    #[test]
    fn only_some_bits_can_be_written() {
        let mut space = space();
        let table = [
            (0x00, 0x1044_1af4),
            (0x04, 0x0000_0406),
            (0x08, 0x0102_0301),
            (0x0c, 0x0000_00ff),
            (0x10, 0),
            (0x24, 0),
            (0x30, 0),
            (0x34, 0),
            (0x3c, 0x0000_00ff),
            (0x40, 0),
        ];
        for (register, value) in table {
            assert_eq!(set(&mut space, register, u32::MAX), value, "{register:#x}");
        }
    }

    #[test]
    fn all_ones_read_back_as_the_size_of_a_bar() {
        let mut space = space();
        space.add_bar(0, 0x1000, Width::Bits32).unwrap();
        space.add_bar(1, 0x2_0000_0000, Width::Bits64).unwrap();
        space.add_bar(4, 0x4000, Width::Bits64).unwrap();
        let registers = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
        let sizes = registers.map(|at| set(&mut space, at, u32::MAX));
        let expected = [
            0xffff_f000,
            0x0000_000c,
            0xffff_fffe,
            0,
            0xffff_c00c,
            0xffff_ffff,
        ];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn a_bar_that_cannot_be_is_refused() {
        let mut space = space();
        for (len, width) in [
            (0, Width::Bits32),
            (8, Width::Bits32),
            (0x1001, Width::Bits64),
            (1 << 32, Width::Bits32),
            (1 << 52, Width::Bits64),
        ] {
            let refused = space.add_bar(0, len, width);
            assert_eq!(refused, Err(ConfigError::BarSize { len }));
        }
        space.add_bar(1, 0x1000, Width::Bits64).unwrap();
        for (index, width) in [
            (0, Width::Bits64),
            (1, Width::Bits32),
            (2, Width::Bits32),
            (5, Width::Bits64),
            (6, Width::Bits32),
            (255, Width::Bits32),
        ] {
            let refused = space.add_bar(index, 0x1000, width);
            assert_eq!(refused, Err(ConfigError::BarTaken { index }), "{width:?}");
        }
    }

    #[test]
    fn a_bar_decodes_while_memory_space_is_on() {
        let mut space = space();
        space.add_bar(0, 0x1000, Width::Bits64).unwrap();
        set(&mut space, 0x10, 0xe000_0abc);
        set(&mut space, 0x14, 0x40);
        assert_eq!(space.decoded(0), None);
        set(&mut space, 4, MEMORY_SPACE.into());
        assert_eq!(space.decoded(0), GpaRange::new(Gpa(0x40_e000_0000), 0x1000));
        assert_eq!((space.decoded(1), space.decoded(200)), (None, None));
        set(&mut space, 0x14, u32::MAX);
        assert_eq!(space.decoded(0), None, "beyond the addresses that exist");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[0, 0xf0]).unwrap();
        let second = space.add_capability(0x11, &[0; 10], &[]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.double_word(0x34), 0x40);
        assert_eq!(space.word(6), CAPABILITIES_LIST);
        assert_eq!(set(&mut space, 0x40, u32::MAX), 0xf201_4809);
        assert_eq!(space.word(0x48), 0x0011, "the last one");
        let refused = space.add_capability(9, &[0; 171], &[]);
        assert_eq!(
            refused,
            Err(ConfigError::CapabilityRoom {
                len: 173,
                end: 0x54
            })
        );
        assert!(space.add_capability(9, &[0; 170], &[]).is_ok());
    }
}

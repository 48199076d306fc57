//! The registers of a local APIC as one page (SDM vol. 3, table 11-1).

use serde::{Deserialize, Serialize};

use super::hex::{self, BadHex};

/// The first KiB of the xAPIC page, as `KVM_GET_LAPIC` lays it out: the 32-bit register `n` (the
/// number of its x2APIC MSR minus 0x800) is at offset `16 * n`, little endian, and what lies between
/// is zero.
///
/// The layout is the same in x2APIC mode, with three words that a guest in this mode does not see
/// so: the id register (0x20) is the whole 32-bit id, and not its lower eight bits in bits 24 to 31,
/// for which KVM must have been told `KVM_X2APIC_API_USE_32BIT_IDS`; the upper half of the interrupt
/// command register is register 0x31; the logical id (0xd0) is the one that follows from the id.
/// IA32_APIC_BASE, which says which mode it is, and IA32_TSC_DEADLINE are MSRs.
///
/// The current count of the timer (0x390) is that of the moment at which the state was saved,
/// rounded up: zero means that the timer does not run. Processor and arbitration priority are
/// written for who reads the image, and not read back. Errors that were collected and not shown in
/// the error status register yet are not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LapicImage(Box<[u8; Self::LEN]>);

/// Bytes that are no image of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLapic {
    /// The length is another one.
    #[error("the image of a local APIC has 1024 bytes, not {0}")]
    Length(usize),
    /// The text is none of bytes.
    #[error("the image of a local APIC: {0}")]
    Hex(#[from] BadHex),
}

impl LapicImage {
    /// Bytes in an image.
    pub const LEN: usize = 1024;

    /// An image of these bytes.
    pub fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(Box::new(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Returns register `number`, 0 to 0x3f.
    ///
    /// # Panics
    /// If `number` is greater.
    pub fn register(&self, number: u32) -> u32 {
        let at = number as usize * 16;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Sets register `number`, 0 to 0x3f.
    ///
    /// # Panics
    /// If `number` is greater.
    pub fn set_register(&mut self, number: u32, value: u32) {
        let at = number as usize * 16;
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

impl Default for LapicImage {
    /// All zero, which is no state of a chip.
    fn default() -> Self {
        Self::new([0; Self::LEN])
    }
}

impl TryFrom<String> for LapicImage {
    type Error = BadLapic;

    fn try_from(text: String) -> Result<Self, BadLapic> {
        let bytes = hex::decode(&text)?;
        let bytes = bytes
            .try_into()
            .map_err(|bytes: Vec<u8>| BadLapic::Length(bytes.len()))?;
        Ok(Self::new(bytes))
    }
}

impl From<LapicImage> for String {
    fn from(image: LapicImage) -> Self {
        hex::encode(image.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_at_sixteen_times_its_number() {
        let mut image = LapicImage::default();
        image.set_register(0x3f, 0x0403_0201);
        assert_eq!(image.bytes()[0x3f0..0x3f4], [1, 2, 3, 4]);
        assert_eq!(image.register(0x3f), 0x0403_0201);
    }

    #[test]
    fn an_image_of_another_length_is_refused() {
        let text = "00".repeat(1023);
        assert_eq!(LapicImage::try_from(text), Err(BadLapic::Length(1023)));
    }
}

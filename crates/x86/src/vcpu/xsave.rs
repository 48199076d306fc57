//! The XSAVE image: x87, SSE and further state (SDM vol. 1, 13.4).

use serde::{Deserialize, Serialize};

use super::hex;

/// An XSAVE area in the *standard* (not the compacted) form, as `KVM_GET_XSAVE2` gives it, and the
/// places of its extended components.
///
/// ```text
///   0     what FXSAVE writes: x87 state, MXCSR, XMM registers   (components 0 and 1)
///   512   header: XSTATE_BV, then zeros
///   576   extended components, each where its processor's CPUID 0DH says
/// ```
/// Processors differ in where they put an extended component, PKRU for one, so an image says it.
/// A component whose bit in XSTATE_BV is clear is in its initial configuration, whatever the bytes
/// say; MXCSR alone counts always (13.8.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct XsaveImage {
    bytes: Vec<u8>,
    components: Vec<Component>,
}

/// Where an image has an extended state component (CPUID 0DH, sub-leaf `number`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its number, which is its bit in XCR0, 2 to 62.
    pub number: u32,
    /// Offset of its first byte.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Component {
    /// Number of the component that is PKRU.
    pub const PKRU: u32 = 9;

    fn range(&self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        // Both are below 2^32, and `usize` has 64 bits on every host that can be an x86-64 one.
        start..start + self.len as usize
    }
}

/// Bytes that are no XSAVE image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadXsave {
    /// Too short or too long.
    #[error("an XSAVE image has 576 to 65536 bytes, not {0}")]
    Length(usize),
    /// The header is not that of the standard form.
    #[error("byte {0} of the XSAVE image is not zero: this is not the standard form")]
    Header(usize),
    /// A component lies where it cannot, or the list is not sorted.
    #[error("XSAVE component {0} lies where none can be, or is listed in the wrong place")]
    Component(u32),
    /// XSTATE_BV has a component that is not listed.
    #[error("XSAVE component {0} is in use, and its place is not listed")]
    Unknown(u32),
}

impl XsaveImage {
    /// Bytes of the legacy area.
    pub const LEGACY: usize = 512;
    /// Bytes of the legacy area and the header.
    pub const BASIC: usize = 576;
    /// The longest image that is accepted; the largest processor so far needs 11 KiB.
    pub const MAX: usize = 64 << 10;

    /// An image of `bytes`, in which `components`, sorted by number, lie.
    ///
    /// # Errors
    /// If this cannot be an image in the standard form.
    pub fn new(bytes: Vec<u8>, components: Vec<Component>) -> Result<Self, BadXsave> {
        if !(Self::BASIC..=Self::MAX).contains(&bytes.len()) {
            return Err(BadXsave::Length(bytes.len()));
        }
        if let Some(at) = (520..Self::BASIC).find(|at| bytes[*at] != 0) {
            return Err(BadXsave::Header(at));
        }
        for (i, component) in components.iter().enumerate() {
            let range = component.range();
            let inside = range.start >= Self::BASIC && range.end <= bytes.len();
            let before = &components[..i];
            let sorted = before.last().is_none_or(|b| b.number < component.number);
            let apart = |other: &Component| {
                other.range().end <= range.start || range.end <= other.range().start
            };
            let known = (2..=62).contains(&component.number);
            if !(known && inside && sorted && before.iter().all(apart)) {
                return Err(BadXsave::Component(component.number));
            }
        }
        let image = Self { bytes, components };
        let listed = image
            .components
            .iter()
            .fold(3, |bits, c| bits | 1u64 << c.number);
        match image.xstate_bv() & !listed {
            0 => Ok(image),
            other => Err(BadXsave::Unknown(other.trailing_zeros())),
        }
    }

    /// An image with `components` in which everything is in its initial configuration (SDM vol. 1,
    /// 13.6).
    ///
    /// # Errors
    /// As [`XsaveImage::new`].
    pub fn initial(components: Vec<Component>) -> Result<Self, BadXsave> {
        let len = components
            .iter()
            .map(|c| c.range().end)
            .fold(Self::BASIC, usize::max);
        // A length that is refused is not allocated first.
        let mut bytes = vec![0; len.min(Self::MAX + 1)];
        bytes[0..2].copy_from_slice(&0x37fu16.to_le_bytes()); // FCW
        bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes()); // MXCSR
        bytes[28..32].copy_from_slice(&0xffffu32.to_le_bytes()); // its mask
        Self::new(bytes, components)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the extended components are, by number.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// What FXSAVE writes.
    pub fn legacy(&self) -> &[u8; Self::LEGACY] {
        self.bytes
            .first_chunk()
            .expect("an image has 576 bytes or more")
    }

    /// The same, to change.
    pub fn legacy_mut(&mut self) -> &mut [u8; Self::LEGACY] {
        self.bytes
            .first_chunk_mut()
            .expect("an image has 576 bytes or more")
    }

    /// XSTATE_BV: the components that are not in their initial configuration.
    pub fn xstate_bv(&self) -> u64 {
        let word = self.bytes[Self::LEGACY..].first_chunk();
        u64::from_le_bytes(*word.expect("an image has 576 bytes or more"))
    }

    /// Says that components 0 (x87) and 1 (SSE) are to be read from the legacy area.
    pub fn use_legacy(&mut self) {
        self.bytes[Self::LEGACY] |= 3;
    }

    /// Returns the bytes of extended component `number`; `None` if it is in its initial
    /// configuration.
    pub fn component(&self, number: u32) -> Option<&[u8]> {
        let component = self.components.iter().find(|c| c.number == number)?;
        (self.xstate_bv() >> number & 1 != 0).then(|| &self.bytes[component.range()])
    }

    /// Says that extended component `number` is in use and returns its bytes, to change; `None` if
    /// it has no place here.
    pub fn use_component(&mut self, number: u32) -> Option<&mut [u8]> {
        let component = *self.components.iter().find(|c| c.number == number)?;
        let at = Self::LEGACY + number as usize / 8;
        self.bytes[at] |= 1 << (number % 8);
        Some(&mut self.bytes[component.range()])
    }

    /// PKRU: zero in its initial configuration (SDM vol. 1, 13.5.7).
    pub fn pkru(&self) -> u32 {
        let bytes = self
            .component(Component::PKRU)
            .and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// What stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(with = "hex")]
    bytes: Vec<u8>,
    components: Vec<Component>,
}

impl TryFrom<Raw> for XsaveImage {
    type Error = BadXsave;

    fn try_from(raw: Raw) -> Result<Self, BadXsave> {
        Self::new(raw.bytes, raw.components)
    }
}

impl From<XsaveImage> for Raw {
    fn from(image: XsaveImage) -> Self {
        Self {
            bytes: image.bytes,
            components: image.components,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u32, offset: u32, len: u32) -> Component {
        Component {
            number,
            offset,
            len,
        }
    }

    #[test]
    fn a_component_is_where_the_image_says() {
        for offset in [832, 2688] {
            let mut image = XsaveImage::initial(vec![at(9, offset, 8)]).unwrap();
            assert_eq!((image.component(9), image.pkru()), (None, 0));
            image.use_component(9).unwrap()[..4].copy_from_slice(&[4, 3, 2, 1]);
            assert_eq!(image.xstate_bv(), 1 << 9);
            assert_eq!(image.pkru(), 0x0102_0304);
            assert_eq!(image.bytes()[offset as usize], 4);
            assert_eq!(image.use_component(2), None);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let bytes = || vec![0; 832];
        let with = |at: usize, value: u8| {
            let mut bytes = bytes();
            bytes[at] = value;
            XsaveImage::new(bytes, vec![at_two()])
        };
        fn at_two() -> Component {
            at(2, 576, 256)
        }
        assert_eq!(
            XsaveImage::new(vec![0; 575], vec![]),
            Err(BadXsave::Length(575))
        );
        assert_eq!(
            XsaveImage::new(vec![0; 65537], vec![]),
            Err(BadXsave::Length(65537))
        );
        assert_eq!(with(527, 0x80), Err(BadXsave::Header(527)), "compacted");
        assert_eq!(with(575, 1), Err(BadXsave::Header(575)));
        assert_eq!(with(512, 0xf), Err(BadXsave::Unknown(3)));
        assert!(with(512, 7).is_ok());
        for bad in [
            vec![at(1, 576, 8)],
            vec![at(63, 576, 8)],
            vec![at(9, 568, 8)],
            vec![at(9, 828, 8)],
            vec![at(9, u32::MAX, u32::MAX)],
            vec![at(9, 576, 8), at(2, 584, 8)],
            vec![at(9, 576, 8), at(9, 584, 8)],
            vec![at(2, 576, 16), at(9, 584, 8)],
        ] {
            let last = bad.last().unwrap().number;
            assert_eq!(
                XsaveImage::new(bytes(), bad),
                Err(BadXsave::Component(last))
            );
        }
    }

    #[test]
    fn a_place_far_away_is_refused_before_it_is_allocated() {
        let far = XsaveImage::initial(vec![at(9, u32::MAX, u32::MAX)]);
        assert_eq!(far, Err(BadXsave::Length(XsaveImage::MAX + 1)));
    }
}

//! x87, MMX and SSE state, in the image that FXSAVE writes (SDM vol. 1, 10.5.1).

use umbra_x86::{Exception, cr0, cr4, vector};

use crate::cpu::{Cpu, Trap};

/// The FXSAVE image: the state itself, so that native stubs load and store registers in place.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct FxArea {
    bytes: [u8; 512],
}

/// Offset of MXCSR in the image.
pub const MXCSR: usize = 24;
/// Offset of XMM0.
pub const XMM: usize = 160;
/// Bits of MXCSR that may be set.
pub const MXCSR_MASK: u32 = 0xffff;
/// Bits of MXCSR (SDM vol. 1, 10.2.3).
pub mod mxcsr {
    /// All exception flags; their masks are 7 bits above.
    pub const FLAGS: u32 = 0x3f;
    /// Invalid operation, denormal operand, division by zero: what operands alone raise.
    pub const OPERANDS: u32 = 7;
    /// Overflow.
    pub const OE: u32 = 1 << 3;
    /// Underflow.
    pub const UE: u32 = 1 << 4;
    /// Loss of precision.
    pub const PE: u32 = 1 << 5;
    /// Tiny results are flushed to zero.
    pub const FZ: u32 = 1 << 15;
}

/// MXCSR with all exceptions masked: its value after reset, and this program's own.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

impl FxArea {
    /// After power-up, with FNINIT's control word.
    pub fn reset() -> Self {
        let mut area = Self { bytes: [0; 512] };
        area.set_u16(0, 0x37f);
        area.set_u32(MXCSR, MXCSR_DEFAULT);
        area.set_u32(28, MXCSR_MASK);
        area
    }

    /// The image.
    pub fn bytes(&self) -> &[u8; 512] {
        &self.bytes
    }

    /// The image as the guest sees it. Native stubs leave the host's mask of MXCSR in it, which may have
    /// bits that this processor has not.
    pub fn image(&self) -> [u8; 512] {
        let mut image = self.bytes;
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        image
    }

    /// The image, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8; 512] {
        &mut self.bytes
    }

    /// Pointer to the image, for native stubs.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// MXCSR.
    #[inline(always)]
    pub fn mxcsr(&self) -> u32 {
        let b = &self.bytes;
        u32::from_le_bytes([b[24], b[25], b[26], b[27]])
    }

    /// Sets MXCSR.
    #[inline(always)]
    pub fn set_mxcsr(&mut self, value: u32) {
        self.set_u32(MXCSR, value);
    }

    /// An x87 exception is pending and not masked.
    pub fn x87_error(&self) -> bool {
        let (fcw, fsw) = (self.u16(0), self.u16(2));
        fsw & !fcw & 0x3f != 0
    }

    /// Puts the guest's addresses where the host's would be: instruction and data pointer.
    pub fn set_pointers(&mut self, rip: u64, data: Option<u64>) {
        self.set_u16(6, 0);
        self.bytes[8..16].copy_from_slice(&rip.to_le_bytes());
        if let Some(data) = data {
            self.bytes[16..24].copy_from_slice(&data.to_le_bytes());
        }
    }

    /// The saved pointers, to put back after an instruction that does not change them.
    pub fn pointers(&self) -> [u8; 18] {
        let mut saved = [0; 18];
        saved.copy_from_slice(&self.bytes[6..24]);
        saved
    }

    /// Restores [`FxArea::pointers`].
    pub fn restore_pointers(&mut self, saved: &[u8; 18]) {
        self.bytes[6..24].copy_from_slice(saved);
    }

    /// Low or high half of an XMM register.
    #[inline(always)]
    pub fn xmm(&self, number: u8, half: usize) -> u64 {
        let at = XMM + (number & 15) as usize * 16 + (half & 1) * 8;
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }

    /// Sets a half of an XMM register.
    #[inline(always)]
    pub fn set_xmm(&mut self, number: u8, half: usize, value: u64) {
        let at = XMM + (number & 15) as usize * 16 + (half & 1) * 8;
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

impl FxArea {
    /// Begins the use of MMX registers: the top of the x87 stack becomes register 0 and all
    /// registers are in use (SDM vol. 1, 9.5.1).
    pub fn enter_mmx(&mut self) {
        let top = usize::from(self.u16(2) >> 11 & 7);
        let old = self.bytes;
        // Slots count from the top of the stack.
        for slot in 0..8 {
            let (to, from) = (32 + 16 * slot, 32 + 16 * ((slot + 8 - top) & 7));
            self.bytes[to..to + 16].copy_from_slice(&old[from..from + 16]);
        }
        let status = self.u16(2) & !0x3800;
        self.set_u16(2, status);
        self.bytes[4] = 0xff;
    }

    /// Reads an MMX register, once [`enter_mmx`](Self::enter_mmx) was there.
    pub fn mmx(&self, number: u8) -> u64 {
        let at = 32 + 16 * usize::from(number & 7);
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }
}

impl Cpu {
    /// Tells whether SSE instructions raise nothing, whatever their operands are: the state is available,
    /// and MXCSR masks all exceptions.
    pub fn sse_raises_nothing(&self) -> bool {
        let masks = mxcsr::FLAGS << 7;
        self.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cr4 & cr4::OSFXSR != 0
            && self.fx.mxcsr() & masks == masks
    }

    /// May an SSE instruction execute (SDM vol. 3, 13.1)?
    #[inline(always)]
    pub fn check_sse(&mut self) -> Result<(), Trap> {
        if self.cr0 & (cr0::EM | cr0::TS) == 0 && self.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        Err(self.sse_refused())
    }

    #[cold]
    fn sse_refused(&mut self) -> Trap {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 {
            return self.ud();
        }
        self.raise(Exception::plain(vector::NM))
    }

    /// May an x87 instruction execute? `waiting` ones report a pending error first.
    pub fn check_x87(&mut self, waiting: bool) -> Result<(), Trap> {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        self.check_x87_error(waiting)
    }

    /// May an MMX instruction execute?
    pub fn check_mmx(&mut self) -> Result<(), Trap> {
        if self.cr0 & cr0::EM != 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(self.raise(Exception::plain(vector::NM)));
        }
        self.check_x87_error(true)
    }

    fn check_x87_error(&mut self, waiting: bool) -> Result<(), Trap> {
        if waiting && self.fx.x87_error() {
            return Err(self.raise(Exception::plain(vector::MF)));
        }
        Ok(())
    }
}

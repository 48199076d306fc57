//! One 8259A: its registers, its priorities and its command words (8259A data sheet).

/// Which initialisation command word is expected next ("Initialization Command Words").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// None: writes to the data port set the mask.
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One chip.
#[derive(Clone, Debug)]
pub struct Chip8259 {
    master: bool,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The inputs as they are now, for edge detection.
    inputs: u8,
    /// Level-triggered inputs (ELCR), and which of them can be chosen.
    levels: u8,
    levels_writable: u8,
    /// ICW1 made all inputs level-triggered (LTIM).
    all_level: bool,
    /// The input with the highest priority.
    top: u8,
    base: u8,
    expect: Expect,
    wants_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip8259 {
    /// A chip that nobody has programmed: every input masked.
    pub fn new(master: bool, levels_writable: u8) -> Self {
        Self {
            master,
            irr: 0,
            imr: 0xff,
            isr: 0,
            inputs: 0,
            levels: 0,
            levels_writable,
            all_level: false,
            top: 0,
            base: 0,
            expect: Expect::Mask,
            wants_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    fn level_triggered(&self) -> u8 {
        if self.all_level { 0xff } else { self.levels }
    }

    /// Drives an input, 0 to 7.
    pub fn set_input(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        let rising = high && self.inputs & bit == 0;
        self.inputs = if high {
            self.inputs | bit
        } else {
            self.inputs & !bit
        };
        // The cascade follows the slave's output, which falls by itself when it was served.
        if self.level_triggered() & bit != 0 || self.master && input == super::CASCADE {
            self.irr = self.irr & !bit | self.inputs & bit;
        } else if rising {
            self.irr |= bit;
        }
    }

    /// Returns how far from the top the most important input of `set` is; 8 for an empty set.
    fn rank(&self, set: u8) -> u8 {
        set.rotate_right(u32::from(self.top))
            .trailing_zeros()
            .min(8) as u8
    }

    fn at_rank(&self, rank: u8) -> u8 {
        (rank + self.top) & 7
    }

    /// Returns the input that the chip asks service for, if any ("Fully Nested Mode").
    pub fn request(&self) -> Option<u8> {
        let rank = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && self.master {
            in_service &= !(1 << super::CASCADE);
        }
        (rank < self.rank(in_service)).then(|| self.at_rank(rank))
    }

    /// Takes `input` into service.
    pub fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
        if self.level_triggered() & bit == 0 {
            self.irr &= !bit;
        }
    }

    /// Returns the vector of `input`.
    pub fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    /// Reads the edge/level control register.
    pub fn levels(&self) -> u8 {
        self.levels
    }

    /// Writes the edge/level control register.
    pub fn set_levels(&mut self, value: u8) {
        self.levels = value & self.levels_writable;
    }

    /// Reads the even port: a poll, ISR or IRR.
    pub fn read_command(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.read_poll();
        }
        if self.read_isr { self.isr } else { self.irr }
    }

    /// Reads the odd port: a poll or the mask.
    pub fn read_data(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            self.read_poll()
        } else {
            self.imr
        }
    }

    fn read_poll(&mut self) -> u8 {
        match self.request() {
            Some(input) => {
                self.acknowledge(input);
                0x80 | input
            }
            None => 0,
        }
    }

    /// Writes the even port: ICW1, OCW2 or OCW3.
    pub fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialize(value);
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value >> 5, value & 7);
        }
    }

    /// ICW1: the chip forgets everything but its inputs and ELCR.
    fn initialize(&mut self, icw1: u8) {
        *self = Self {
            inputs: self.inputs,
            levels: self.levels,
            imr: 0,
            all_level: icw1 & 8 != 0,
            single: icw1 & 2 != 0,
            wants_icw4: icw1 & 1 != 0,
            expect: Expect::Icw2,
            ..Self::new(self.master, self.levels_writable)
        };
        self.irr = self.inputs & self.level_triggered();
    }

    /// OCW2 ("End of Interrupt", "Automatic Rotation", "Specific Rotation").
    fn end_of_interrupt(&mut self, command: u8, input: u8) {
        match command {
            0b000 | 0b100 => self.rotate_on_auto_eoi = command == 0b100,
            0b001 | 0b101 => {
                // In special mask mode a masked in-service bit is not ended non-specifically.
                let hidden = if self.special_mask { self.imr } else { 0 };
                let rank = self.rank(self.isr & !hidden);
                if rank < 8 {
                    let served = self.at_rank(rank);
                    self.isr &= !(1 << served);
                    if command == 0b101 {
                        self.top = (served + 1) & 7;
                    }
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b110 => self.top = (input + 1) & 7,
            0b111 => {
                self.isr &= !(1 << input);
                self.top = (input + 1) & 7;
            }
            _ => {}
        }
    }

    /// Writes the odd port: the mask, or ICW2 to ICW4.
    pub fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.wants_icw4 {
            Expect::Icw4
        } else {
            Expect::Mask
        };
        match self.expect {
            Expect::Mask => self.imr = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = if self.single {
                    after_icw3
                } else {
                    Expect::Icw3
                };
            }
            // The wiring of the cascade is fixed; what the guest says about it does not matter.
            Expect::Icw3 => self.expect = after_icw3,
            Expect::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.expect = Expect::Mask;
            }
        }
    }
}

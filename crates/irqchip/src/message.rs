//! An interrupt message: what travels between IOAPIC, devices and local APICs.

use umbra_irq::Msi;

/// How a message is delivered (SDM vol. 3, 11.5.1, "Delivery Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To every processor listed, with the message's vector.
    Fixed,
    /// To the one listed processor that does the least important work.
    LowestPriority,
    /// System management interrupt. Accepted and ignored: there is no system management mode.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT.
    Init,
    /// Start-up: the vector is the page at which an application processor starts.
    StartUp,
    /// The vector comes from the 8259 pair.
    ExtInt,
}

impl Delivery {
    /// Decodes the three-bit field; 3 is reserved.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// Encodes the three-bit field.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::StartUp => 6,
            Self::ExtInt => 7,
        }
    }
}

/// Whom a message is for (SDM vol. 3, 11.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every local APIC.
    All,
    /// Every local APIC but the one with this number.
    AllBut(u32),
    /// The local APIC with this id.
    Physical(u32),
    /// The local APICs whose logical id matches, each by its own mode.
    Logical(u32),
}

impl Destination {
    /// Decodes an eight-bit destination field; 0xff is a broadcast in either mode.
    pub const fn from_byte(byte: u8, logical: bool) -> Self {
        match (byte, logical) {
            (0xff, _) => Self::All,
            (_, true) => Self::Logical(byte as u32),
            (_, false) => Self::Physical(byte as u32),
        }
    }

    /// Decodes the 32-bit destination field of x2APIC mode.
    pub const fn from_x2apic(field: u32, logical: bool) -> Self {
        match (field, logical) {
            (u32::MAX, _) => Self::All,
            (_, true) => Self::Logical(field),
            (_, false) => Self::Physical(field),
        }
    }
}

/// One interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How.
    pub delivery: Delivery,
    /// Vector, or start-up page.
    pub vector: u8,
    /// Level-triggered: the end of interrupt is told to the IOAPICs.
    pub level: bool,
    /// To whom.
    pub destination: Destination,
}

impl Message {
    /// Encodes the message as the memory write that sends it (SDM vol. 3, 11.11).
    pub fn to_msi(self) -> Msi {
        const LOGICAL: u64 = 1 << 2;
        let (id, logical) = match self.destination {
            // There is no message for all but one: only a local APIC sends such.
            Destination::All | Destination::AllBut(_) => (0xff, 0),
            Destination::Physical(id) => (u64::from(id), 0),
            Destination::Logical(id) => (u64::from(id), LOGICAL),
        };
        let level = if self.level { 1 << 15 | 1 << 14 } else { 0 };
        Msi {
            address: 0xfee0_0000 | (id & 0xff) << 12 | logical,
            data: u32::from(self.vector) | self.delivery.bits() << 8 | level,
        }
    }

    /// Decodes a message-signalled interrupt (SDM vol. 3, 11.11). `None` where the write does not
    /// go to processors or its delivery mode is reserved.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        const REDIRECTION_HINT: u64 = 1 << 3;
        const LOGICAL: u64 = 1 << 2;
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let mut delivery = Delivery::from_bits(msi.data >> 8)?;
        if msi.address & REDIRECTION_HINT != 0 && delivery == Delivery::Fixed {
            delivery = Delivery::LowestPriority;
        }
        Some(Self {
            delivery,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
            destination: Destination::from_byte(
                (msi.address >> 12) as u8,
                msi.address & LOGICAL != 0,
            ),
        })
    }
}

/// Takes messages to local APICs, wherever these are.
pub trait Messages: Send + Sync {
    /// Delivers a message; true when at least one local APIC accepted it.
    fn deliver(&self, message: &Message) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msi_decodes_field_by_field() {
        let fixed = Message::from_msi(Msi {
            address: 0xfee0_3000,
            data: 0x8041,
        });
        assert_eq!(
            fixed,
            Some(Message {
                delivery: Delivery::Fixed,
                vector: 0x41,
                level: true,
                destination: Destination::Physical(3),
            })
        );
        let lowest = Message::from_msi(Msi {
            address: 0xfee0_500c,
            data: 0x41,
        })
        .unwrap();
        assert_eq!(lowest.delivery, Delivery::LowestPriority);
        assert_eq!(lowest.destination, Destination::Logical(5));
    }

    #[test]
    fn a_message_comes_out_of_its_msi_as_it_went_in() {
        let destinations = [
            Destination::All,
            Destination::Physical(3),
            Destination::Logical(0x21),
        ];
        for destination in destinations {
            for bits in [0, 1, 2, 4, 5, 6, 7] {
                for level in [false, true] {
                    let delivery = Delivery::from_bits(bits).unwrap();
                    assert_eq!(delivery.bits(), bits);
                    let message = Message {
                        delivery,
                        vector: 0x51,
                        level,
                        destination,
                    };
                    assert_eq!(Message::from_msi(message.to_msi()), Some(message));
                }
            }
        }
    }

    #[test]
    fn a_write_that_is_no_interrupt_message_is_none() {
        assert_eq!(
            Message::from_msi(Msi {
                address: 0xfed0_0000,
                data: 0x41
            }),
            None
        );
        assert_eq!(
            Message::from_msi(Msi {
                address: 0x1_fee0_0000,
                data: 0x41
            }),
            None
        );
        assert_eq!(
            Message::from_msi(Msi {
                address: 0xfee0_0000,
                data: 0x341
            }),
            None
        );
    }

    #[test]
    fn an_eight_bit_destination_of_all_ones_is_a_broadcast() {
        assert_eq!(Destination::from_byte(0xff, false), Destination::All);
        assert_eq!(Destination::from_byte(0xff, true), Destination::All);
        assert_eq!(
            Destination::from_x2apic(0xff, false),
            Destination::Physical(0xff)
        );
        assert_eq!(Destination::from_x2apic(u32::MAX, true), Destination::All);
    }
}

//! A device of virtio-mmio, or a function of the PCI bus.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, DeviceFunction, MemoryBarType, MmioCam, PciRoot,
};
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use crate::pages::OneToOne;

/// Registers, and the configuration behind them.
const WINDOW: usize = 0x200;

/// Where the configuration of all functions is (PCIe's way), on the machines that this guest knows.
const ECAM: usize = 0xe000_0000;
/// Where there is room for BARs there.
const BARS: u64 = 0xc000_0000;

/// Where a device is.
#[derive(Clone, Copy)]
pub enum Place {
    /// At an address.
    Mmio(usize),
    /// On bus 0, function 0 of this device.
    Pci(u8),
}

impl Place {
    /// Reads a number, an address, or `pci:` and a number of 31 at most.
    pub fn parse(word: &str) -> Option<Self> {
        match word.strip_prefix("pci:") {
            Some(device) => {
                let device = u8::try_from(crate::number(device)?).ok()?;
                (device < 32).then_some(Self::Pci(device))
            }
            None => crate::number(word).map(Self::Mmio),
        }
    }
}

/// Returns the device at a place, which has to be of a type.
pub fn find(place: Place, kind: DeviceType) -> Result<SomeTransport<'static>, &'static str> {
    let transport: SomeTransport<'static> = match place {
        Place::Mmio(address) => at(address)?.into(),
        Place::Pci(device) => function(device)?.into(),
    };
    if transport.device_type() == kind {
        Ok(transport)
    } else {
        crate::println!("there is a device of type {:?}", transport.device_type());
        Err("it is another device than the command is for")
    }
}

fn at(address: usize) -> Result<MmioTransport<'static>, &'static str> {
    let header = NonNull::new(address as *mut VirtIOHeader).ok_or("no device is at 0")?;
    // SAFETY: whoever wrote the command line says that a device is there.
    let transport = unsafe { MmioTransport::new(header, WINDOW) };
    transport.map_err(|error| {
        crate::println!("{error}");
        "no virtio-mmio device is there"
    })
}

fn function(device: u8) -> Result<PciTransport, &'static str> {
    // SAFETY: memory is mapped one to one, and nobody else uses these addresses.
    let configuration = unsafe { MmioCam::new(ECAM as *mut u8, Cam::Ecam) };
    let mut root = PciRoot::new(configuration);
    let function = DeviceFunction {
        bus: 0,
        device,
        function: 0,
    };
    if !root.enumerate_bus(0).any(|(there, _)| there == function) {
        return Err("no PCI function is there");
    }
    place_bars(&mut root, function)?;
    PciTransport::new::<OneToOne, _>(&mut root, function).map_err(|error| {
        crate::println!("{error}");
        "it is no virtio function"
    })
}

/// What firmware does: gives each BAR addresses of its own, and lets the function use memory.
fn place_bars(
    root: &mut PciRoot<MmioCam<'static>>,
    function: DeviceFunction,
) -> Result<(), &'static str> {
    root.set_command(function, Command::empty());
    let bars = root.bars(function).map_err(|error| {
        crate::println!("{error}");
        "the function's BARs"
    })?;
    let mut next = BARS;
    for (index, bar) in (0..).zip(bars) {
        let Some(BarInfo::Memory {
            address_type, size, ..
        }) = bar
        else {
            continue;
        };
        next = next.next_multiple_of(size);
        match address_type {
            MemoryBarType::Width64 => root.set_bar_64(function, index, next),
            _ => root.set_bar_32(function, index, next as u32),
        }
        next += size;
    }
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    Ok(())
}

/// Says what a driver had to complain about, and what was asked of it then.
pub fn failed(what: &'static str) -> impl FnOnce(virtio_drivers::Error) -> &'static str {
    move |error| {
        crate::println!("{error}");
        what
    }
}

/// 64-bit FNV-1a, as the tests compute it.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

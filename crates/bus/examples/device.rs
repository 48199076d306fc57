//! A device of one's own, behind a window of memory and behind ports.
use std::error::Error;
use std::sync::{Arc, Mutex};

use umbra_bus::{Bus, Ports};
use umbra_slots::{AddressSpace, Gpa, GpaRange, Options};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{MutDeviceMmio, MutDevicePio};

/// A register of eight bits, which is everywhere in its window.
struct Latch(u8);

impl MutDeviceMmio for Latch {
    fn mmio_read(&mut self, _base: MmioAddress, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }
    fn mmio_write(&mut self, _base: MmioAddress, _offset: u64, data: &[u8]) {
        self.0 = data[0];
    }
}

impl MutDevicePio for Latch {
    fn pio_read(&mut self, _base: PioAddress, _offset: u16, data: &mut [u8]) {
        data.fill(self.0);
    }
    fn pio_write(&mut self, _base: PioAddress, _offset: u16, data: &[u8]) {
        self.0 = data[0];
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let latch = Arc::new(Mutex::new(Latch(0)));
    let space = AddressSpace::new(Options::default());
    let (bus, ports) = (Bus::new(space.clone()), Ports::new());
    let window = GpaRange::new(Gpa(0xd000_0000), 0x1000).ok_or("no such range")?;
    let id = bus.insert(window, latch.clone())?;
    ports.insert(0x510, 2, latch)?;
    // What a processor's exits ask for: the guest writes the window, and reads a port.
    bus.write(&space.load(), Gpa(0xd000_0008), &[0x5a]);
    let mut data = [0];
    ports.read(0x511, &mut data);
    assert_eq!(data, [0x5a]);
    // The guest moves the window. Whoever remembers the old place compares generations.
    bus.move_to(id, Gpa(0xe000_0000))?;
    bus.read(&space.load(), Gpa(0xd000_0008), &mut data);
    assert_eq!((data, bus.misses(), space.generation().0), ([0xff], 1, 2));
    println!("port 0x511 gave 0x5a; the window's old place gives {data:x?}");
    Ok(())
}

//! `block PLACE`: reads and writes a disk.

use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use crate::device::{Place, checksum, failed, find};
use crate::pages::OneToOne;

/// Sectors of one request.
const SECTORS: usize = 9;

/// Prints `block SECTORS ID`, and `read CHECKSUM` of the first sectors; writes to those behind them a pattern of
/// its own, flushes, and reads it again; asks for what lies past the end.
pub fn run(place: Place) -> Result<(), &'static str> {
    let transport = find(place, DeviceType::Block)?;
    let mut disk = VirtIOBlk::<OneToOne, _>::new(transport)
        .map_err(failed("the device cannot be initialised"))?;
    let mut id = [0; 20];
    let len = disk
        .device_id(&mut id)
        .map_err(failed("the serial number"))?;
    let id = core::str::from_utf8(&id[..len]).map_err(|_| "the serial number is no text")?;
    crate::println!("block {} {id}", disk.capacity());

    let mut sectors = [0; SECTORS * SECTOR_SIZE];
    disk.read_blocks(0, &mut sectors)
        .map_err(failed("the first read"))?;
    crate::println!("read {:#x}", checksum(&sectors));
    if disk.readonly() {
        let Err(error) = disk.write_blocks(SECTORS, &sectors) else {
            return Err("a disk that cannot be written was written");
        };
        crate::println!("read-only: {error}");
        return Ok(());
    }

    let mut pattern = [0; SECTORS * SECTOR_SIZE];
    for (at, byte) in pattern.iter_mut().enumerate() {
        *byte = (at * 7 / 3) as u8;
    }
    disk.write_blocks(SECTORS, &pattern)
        .map_err(failed("the write"))?;
    disk.flush().map_err(failed("the flush"))?;
    disk.read_blocks(SECTORS, &mut sectors)
        .map_err(failed("the second read"))?;
    if sectors != pattern {
        return Err("what was written is not what is read");
    }
    crate::println!("wrote {:#x}", checksum(&pattern));
    past_the_end(&mut disk, &mut sectors)
}

type Disk = VirtIOBlk<OneToOne, virtio_drivers::transport::SomeTransport<'static>>;

/// One sector too many is an error of the request, and the device works on.
fn past_the_end(disk: &mut Disk, sectors: &mut [u8]) -> Result<(), &'static str> {
    let end = disk.capacity() as usize;
    let Err(error) = disk.read_blocks(end + 1 - SECTORS, sectors) else {
        return Err("sectors past the end can be read");
    };
    crate::println!("past the end: {error}");
    disk.read_blocks(end - SECTORS, sectors)
        .map_err(failed("the last sectors"))
}

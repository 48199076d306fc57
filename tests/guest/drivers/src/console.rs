//! `console PLACE`: a conversation by a console without ports.

use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;

use crate::device::{Place, failed, find};
use crate::pages::OneToOne;

/// Lines are shorter.
const LONGEST: usize = 128;

/// Returns each line in capitals, until one is `bye`. Prints how many lines there were.
pub fn run(place: Place) -> Result<(), &'static str> {
    let transport = find(place, DeviceType::Console)?;
    let mut console = VirtIOConsole::<OneToOne, _>::new(transport)
        .map_err(failed("the device cannot be initialised"))?;
    let (mut line, mut len, mut lines) = ([0; LONGEST], 0, 0);
    loop {
        let got = console.recv(true).map_err(failed("a byte that comes"))?;
        let Some(byte) = got else {
            core::hint::spin_loop();
            continue;
        };
        *line.get_mut(len).ok_or("the line is too long")? = byte.to_ascii_uppercase();
        len += 1;
        if byte != b'\n' {
            continue;
        }
        if &line[..len] == b"BYE\n" {
            crate::println!("console {lines} lines");
            return Ok(());
        }
        console
            .send_bytes(&line[..len])
            .map_err(failed("a line that goes back"))?;
        (len, lines) = (0, lines + 1);
    }
}

//! A virtio device of one's own, memory-mapped: it puts a greeting into every buffer.
use std::{error::Error, io::Write, time::Duration};

use umbra_slots::DmaMemory;
use umbra_virtio::testing::{Driver, WRITE};
use umbra_virtio::{ActivateError, Activation, Device, Fault, Features, Handler};
use umbra_virtio::{Interrupt, Next, Queue, QueueWorker};

struct Greeter(Option<QueueWorker>);
impl Device for Greeter {
    fn id(&self) -> u32 {
        63
    }
    fn features(&self) -> Features {
        Features::RINGS
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.0 = Some(QueueWorker::start("greeter", activation, Greet)?);
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<Queue> {
        self.0.take().map(QueueWorker::stop).unwrap_or_default()
    }
}

struct Greet;
impl Handler for Greet {
    fn serve(&mut self, ring: &mut Queue, ram: &DmaMemory, irq: &Interrupt) -> Result<Next, Fault> {
        let served = ring.serve(ram, irq, |chain| {
            let written = chain.writer()?.write(b"hello")?;
            Ok::<_, Fault>(Some(written as u32))
        })?;
        Ok(Next::after(served, Duration::ZERO))
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut driver = Driver::new(Box::new(Greeter(None)), 16); // it has an `MmioTransport`
    driver.start(Features::NONE);
    driver.describe(0, (0x1000, 64, WRITE, 0));
    driver.offer(0);
    driver.wait(|driver| driver.line.is_high());
    let text = driver.memory.get(0x1000);
    assert_eq!((driver.used(0).1, &text), (5, b"hello"));
    println!("the driver's buffer: {}", text.escape_ascii());
    Ok(())
}

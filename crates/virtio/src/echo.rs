//! For tests of transports: a device that copies what a chain has to read into what it has to write.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use umbra_slots::DmaMemory;

use crate::testing::Driver;
use crate::{
    ActivateError, Activation, Device, Fault, Features, Handler, Interrupt, Next, Queue,
    QueueError, QueueWorker,
};

/// What tests turn while it works, and see of it.
#[derive(Default)]
pub struct Knobs {
    /// It cannot be activated.
    pub refuses: AtomicBool,
    /// It panics with the next chain.
    pub panics: AtomicBool,
    /// Milliseconds that it takes over a chain, before it writes.
    pub delay_ms: AtomicU32,
    /// It has begun with a chain.
    pub busy: AtomicBool,
    /// How often it was activated, deactivated, reset.
    pub calls: [AtomicU32; 3],
    /// Its configuration has changed so often.
    pub generation: AtomicU32,
    /// The way to notify the driver, of the last activation.
    pub interrupt: Mutex<Option<Arc<Interrupt>>>,
}

impl Knobs {
    /// Returns how often it was activated, deactivated, reset.
    pub fn count(&self) -> [u32; 3] {
        self.calls.each_ref().map(|n| n.load(Ordering::SeqCst))
    }
}

/// The device: queues of 8 and 64 descriptors at most, "config" as its configuration.
pub struct Echo {
    /// What tests have of it.
    pub knobs: Arc<Knobs>,
    config: Vec<u8>,
    worker: Option<QueueWorker>,
}

/// Bits of the device's own, in the first and in the third word.
pub const OWN: Features = Features::bit(3).with(Features::bit(70));

/// A device for a driver that the caller has.
pub fn device() -> (Echo, Arc<Knobs>) {
    let knobs = Arc::new(Knobs::default());
    let device = Echo {
        knobs: knobs.clone(),
        config: b"config".to_vec(),
        worker: None,
    };
    (device, knobs)
}

/// A device that has a driver.
pub fn echo() -> (Driver, Arc<Knobs>) {
    let (device, knobs) = device();
    (Driver::new(Box::new(device), 8), knobs)
}

impl Device for Echo {
    fn id(&self) -> u32 {
        42
    }

    fn features(&self) -> Features {
        OWN.with(Features::RINGS)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::read_config(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(place) = usize::try_from(at)
                .ok()
                .and_then(|at| self.config.get_mut(at))
            {
                *place = *byte;
            }
        }
    }

    fn config_generation(&self) -> u32 {
        self.knobs.generation.load(Ordering::SeqCst)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.knobs.calls[0].fetch_add(1, Ordering::SeqCst);
        if self.knobs.refuses.load(Ordering::SeqCst) {
            return Err(ActivateError::Host {
                what: "anything",
                source: std::io::ErrorKind::Other.into(),
            });
        }
        *self.knobs.interrupt.lock() = Some(activation.interrupt.clone());
        let worker = QueueWorker::start("echo", activation, Work(self.knobs.clone()))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.knobs.calls[1].fetch_add(1, Ordering::SeqCst);
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }

    fn reset(&mut self) {
        self.knobs.calls[2].fetch_add(1, Ordering::SeqCst);
    }
}

struct Work(Arc<Knobs>);

impl Handler for Work {
    fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault> {
        let served = queue.serve(memory, interrupt, |chain| {
            self.0.busy.store(true, Ordering::SeqCst);
            assert!(!self.0.panics.load(Ordering::SeqCst), "on purpose");
            let delay = self.0.delay_ms.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(delay.into()));
            let (mut reader, mut writer) = (chain.reader()?, chain.writer()?);
            // A driver may offer gigabytes.
            let len = reader.available_bytes().min(0x4000);
            if writer.available_bytes() < len {
                return Err(QueueError::Short { head: chain.head() }.into());
            }
            let mut bytes = vec![0; len];
            reader.read_exact(&mut bytes)?;
            writer.write_all(&bytes)?;
            Ok::<_, Fault>(Some(len as u32))
        })?;
        Ok(Next::after(served, Duration::ZERO))
    }
}

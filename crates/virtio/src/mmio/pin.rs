//! The transport's one interrupt: a level-triggered line that is high while a reason is not
//! acknowledged (virtio 1.3, 4.2.2, InterruptStatus and InterruptACK).

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_irq::Line;

use crate::Wire;

const USED_BUFFERS: u32 = 1 << 0;
const CONFIG_CHANGED: u32 = 1 << 1;

/// The line, and why it is high.
pub struct Pin {
    line: Arc<dyn Line>,
    /// Held while the line is set, so that the line's level is always that of the last change.
    status: Mutex<u32>,
}

impl Pin {
    pub fn new(line: Arc<dyn Line>) -> Self {
        Self {
            line,
            status: Mutex::new(0),
        }
    }

    pub fn status(&self) -> u32 {
        *self.status.lock()
    }

    pub fn acknowledge(&self, reasons: u32) {
        self.change(|status| status & !reasons);
    }

    pub fn clear(&self) {
        self.change(|_| 0);
    }

    fn raise(&self, reason: u32) {
        self.change(|status| status | reason);
    }

    fn change(&self, to: impl FnOnce(u32) -> u32) {
        let mut status = self.status.lock();
        *status = to(*status);
        self.line.set(*status != 0);
    }
}

impl Wire for Arc<Pin> {
    fn used_buffers(&self, _: u16) {
        self.raise(USED_BUFFERS);
    }

    fn config_changed(&self) {
        self.raise(CONFIG_CHANGED);
    }
}

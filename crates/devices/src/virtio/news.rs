//! A configuration that changes by itself, and a driver that has to hear of it (virtio 1.3, 2.5).

/// Kept with the configuration, under its lock.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    generation: u32,
    /// The generation that the driver was interrupted for.
    heard: u32,
}

impl News {
    /// The configuration has changed.
    pub fn change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Returns which configuration it is.
    pub fn generation(self) -> u32 {
        self.generation
    }

    /// Tells whether the driver has to be interrupted; it counts as done then.
    pub fn take(&mut self) -> bool {
        let news = self.heard != self.generation;
        self.heard = self.generation;
        news
    }
}

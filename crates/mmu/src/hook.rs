//! A place where tests step in between two steps of a slow fault.

use parking_lot::Mutex;

type Action = Box<dyn FnMut(&'static str) + Send>;

/// Runs what a test put there.
#[derive(Default)]
pub(crate) struct Hook(Mutex<Option<Action>>);

impl Hook {
    /// Runs `action` at every later step, with the step's name.
    pub fn set(&self, action: impl FnMut(&'static str) + Send + 'static) {
        *self.0.lock() = Some(Box::new(action));
    }

    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    pub fn run(&self, step: &'static str) {
        // Taken out meanwhile: the action may fault, too.
        let Some(mut action) = self.0.lock().take() else {
            return;
        };
        action(step);
        self.0.lock().get_or_insert(action);
    }
}

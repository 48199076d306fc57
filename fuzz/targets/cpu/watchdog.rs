//! Ends runs that last too long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use umbra_cpu::Kick;

/// A run lasts between one and two of these.
const PERIOD: Duration = Duration::from_millis(1);

/// The run in progress, and how many there were.
static RUN: Mutex<Option<Arc<dyn Kick>>> = Mutex::new(None);
static COUNT: AtomicU64 = AtomicU64::new(0);
static START: Once = Once::new();

/// A run that is watched, until it is dropped.
pub struct Watched;

/// Watches a run.
pub fn watch(kick: Arc<dyn Kick>) -> Watched {
    START.call_once(|| drop(std::thread::spawn(patrol)));
    COUNT.fetch_add(1, Ordering::SeqCst);
    *RUN.lock().expect("nobody panics with it") = Some(kick);
    Watched
}

impl Drop for Watched {
    fn drop(&mut self) {
        *RUN.lock().expect("nobody panics with it") = None;
    }
}

fn patrol() {
    let mut last = 0;
    loop {
        std::thread::sleep(PERIOD);
        let now = COUNT.load(Ordering::SeqCst);
        // The same run as last time. A kick is taken once, so an old run gets one at each turn.
        if now == last
            && let Some(kick) = &*RUN.lock().expect("nobody panics with it")
        {
            kick.kick();
        }
        last = now;
    }
}

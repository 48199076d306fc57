//! What the host lets this process have.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::SIGXFSZ;
use umbra_vmm::{VirtioKind, VirtioSpec};

/// Has a file that may be no larger (`ulimit -f`) be an error of whoever writes it, and not the end of the process.
pub fn survive() {
    // Who cannot have it dies by the signal, as everybody does.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// Takes all open files that the host allows, where a machine may need more than the usual 1024: each
/// connection of a socket device is one.
pub fn raise(devices: &[VirtioSpec]) {
    let is_vsock = |device: &VirtioSpec| matches!(device.kind, VirtioKind::Vsock(_));
    if devices.iter().any(is_vsock) {
        raise_all();
    }
}

/// The same for whatever comes.
pub fn raise_all() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer connections, and the log says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

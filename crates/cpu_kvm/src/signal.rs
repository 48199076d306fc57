//! The signal that gets a thread out of the guest, and never anything else.
//!
//! It is blocked in the thread while that runs a processor, and unblocked by KVM only while the
//! thread is inside `KVM_RUN`; so no handler is needed, none is installed, and the signal's default
//! action cannot happen. A signal that comes at any other moment stays pending, and the next entry
//! returns at once: there is no window in which it could be lost.
//!
//! Unsafe because these are calls to the C library on plain values.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// A thread of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tid(libc::pid_t);

impl Tid {
    /// The calling thread.
    pub fn current() -> Self {
        // SAFETY: has no arguments and cannot fail.
        Self(unsafe { libc::gettid() })
    }
}

/// The signal: the first real-time one that the C library leaves to programs.
fn number() -> libc::c_int {
    libc::SIGRTMIN()
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn only_ours() -> libc::sigset_t {
    let mut set = empty();
    // SAFETY: the set is initialised and the number is a signal's.
    unsafe { libc::sigaddset(&mut set, number()) };
    set
}

/// What was blocked in a thread before.
#[derive(Clone, Copy)]
pub struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks the signal in the calling thread.
    pub fn begin() -> Self {
        let mut before = empty();
        // SAFETY: both sets are initialised; the call fails only for an unknown first argument.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &only_ours(), &mut before) };
        Self { before }
    }

    /// Returns what is to be blocked inside the guest: what was before, and not this signal. Bit
    /// N - 1 is signal N.
    pub fn inside(&self) -> u64 {
        // SAFETY: the set is initialised, the numbers are those of signals.
        let blocked = |n: &i32| unsafe { libc::sigismember(&self.before, *n) == 1 };
        (1..=64)
            .filter(|n| *n != number())
            .filter(blocked)
            .fold(0, |mask, n| mask | 1 << (n - 1))
    }

    /// Takes what is pending of the signal, and makes the calling thread's mask what it was. Nobody
    /// may send the signal to this thread any more.
    pub fn end(self) {
        drain();
        // SAFETY: the set is initialised; nothing is returned.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// Takes the signal, if it is pending for the calling thread, in which it is blocked.
pub fn drain() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Real-time signals queue: each call takes one.
    // SAFETY: set and time are initialised; no information is asked for.
    while unsafe { libc::sigtimedwait(&only_ours(), std::ptr::null_mut(), &now) } > 0 {}
}

/// Sends the signal to a thread of this process, in which it is blocked.
pub fn send(to: Tid) -> io::Result<()> {
    // SAFETY: plain numbers. The thread exists: it has not said yet that it left.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), to.0, number()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! What the tests share: running the command, terminals, guests.

pub mod asked;
pub mod back_ends;
pub mod backend;
pub mod bare_metal;
mod command;
pub mod disks;
pub mod faulty;
pub mod guest;
pub mod image;
pub mod namespace;
pub mod peer;
pub mod poll;
pub mod program;
mod pty;
pub mod python;
pub mod qcow2;
pub mod resident;
pub mod restless;
pub mod screen;
pub mod shell;
pub mod sockets;
pub mod stock;
pub mod tools;
pub mod userland;
pub mod vhost_guest;
pub mod watched;

pub use command::{Ended, Input, Running, Umbra};
pub use pty::Terminal;

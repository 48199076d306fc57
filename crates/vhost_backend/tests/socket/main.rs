//! The back end through its socket, with the front end of the `vhost` crate as the other side: rings in a memfd, and
//! a device that copies what it reads into what it may write.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

mod back;
mod configuration;
mod guest;
mod hostile;
mod in_flight;
mod logging;
mod regions;
mod rings;
mod sockets;

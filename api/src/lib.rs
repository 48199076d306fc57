//! The interface of a machine to other programs: HTTP and JSON on a unix socket.
//!
//! ```text
//!   client ── socket ── [api thread]  server: bounded requests ── mailbox ──> [owner] Instance
//!                            ^                                                    │ one thing at a time
//!                            └──────────────── answer ────────────────────────────┘
//! ```
//! The HTTP side verifies and converts; a machine is owned by one thread, an [`Instance`](firecracker::instance::Instance),
//! which does one thing at a time and stands on [`umbra_vmm::Handle`]. No global state, no signal handler, no end of
//! the process: those are the command's.
//!
//! Two interfaces are before the same machine: [`firecracker`], which clients of Firecracker know, and [`v1`], which has
//! the rest. [`openapi`] describes both.
//!
//! Start reading at [`firecracker`], then [`v1`], then [`server`].
#![forbid(unsafe_code)]

pub mod firecracker;
pub mod openapi;
pub mod server;
mod strict;
pub mod v1;

//! `/v1`: what a program wants of a machine beside what Firecracker's interface has. Devices of every type that come and
//! go, with the guest's answer; processors one by one; buttons; resets in place; what happened, with numbers; a look
//! inside.
//!
//! ```text
//!   connection ── routes: verb, path, query, body ──> Call ─┬─ Order ──> the machine's owner      short, one at a time
//!                                                           ├─ Task ───> a thread of a pool       may wait for the guest
//!                                                           └─ Events ─> a stream                 until the client goes
//! ```
//! What changes the machine's life or what is remembered of it is done by its owner. What may wait for the guest, or only
//! looks, is done on a thread of its own with a [`Handle`](umbra_vmm::Handle), so that nobody else waits; there are
//! [`TASKS`] at a time.
//!
//! A refusal is a [`Problem`]: a status, a word for programs that stays, a sentence, and what to do.

mod desk;
pub mod device;
pub mod events;
pub mod policy;
pub mod problem;
mod prometheus;
pub mod routes;
mod tasks;
pub mod types;

pub use desk::{Desk, Served};
pub use problem::{Code, Problem};
pub use routes::{Call, Reply, Request};
pub(crate) use tasks::no_such_device;

/// How many tasks that may wait for a guest there are at a time; more are refused.
pub const TASKS: usize = 32;
/// How many clients follow events at a time; more are refused.
pub const STREAMS: usize = 32;

/// Tells whether a path is one of this interface.
pub fn is_ours(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/") || path == prometheus::PATH
}

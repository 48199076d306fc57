//! A clock's reading as a value, to go on from elsewhere.

use serde::{Deserialize, Serialize};

/// What a machine's clock read, and when that was in the world.
///
/// KVM's `KVM_GET_CLOCK` gives the same two (`clock`, and `realtime` where the host says it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// Nanoseconds since the machine was made, not counting the time between a saving and its
    /// resumption: kvmclock's system time, and the time-stamp counter of a processor that has not
    /// written its own.
    pub nanoseconds: u64,
    /// Wall-clock time of the moment of saving, in nanoseconds since 1970-01-01 UTC. For whoever
    /// resumes: it tells how long the machine was away.
    pub wall_ns: u64,
}

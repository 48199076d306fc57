//! Virtio devices, a folder each: `mod.rs` is what the driver finds, `work.rs` what is done on the
//! device's thread, `tests.rs` a driver. What they have in common is in `umbra-virtio`.

pub mod balloon;
pub mod block;
pub mod console;
pub mod limiter;
pub mod mem;
pub mod net;
mod news;
pub mod pmem;
pub mod rng;
pub mod vsock;

pub use balloon::{Balloon, BalloonControl, BalloonOptions};
pub use block::{Block, BlockControl, BlockOptions};
pub use console::{Console, ConsoleControl, ConsoleOptions, PortOptions};
pub use limiter::{Bucket, Limits};
pub use mem::{Mem, MemControl, MemOptions};
pub use net::{Net, NetControl};
pub use pmem::{Pmem, PmemControl};
pub use rng::Rng;
pub use vsock::{Vsock, VsockOptions};

//! What a guest can ask about itself: Firecracker's metadata service (MMDS), as programs in guests know it from clouds.
//!
//! ```text
//!   host ── put, patch, get ──> Metadata (a JSON object, tokens) <── answer ── Http ── TCP ── MetadataPort
//!                                                                                              ^      │
//!   guest's interface ── frames to the service's address, ARP for it ──────────────────────────┘      │
//!                     ── all others ──────────────────────────────────────> the port behind it <──────┘
//! ```
//! The host replaces and changes the data at any time, from any thread. The guest reads it by HTTP at an address of its
//! own link, 169.254.169.254: [`MetadataPort`] is a [`Port`](umbra_net::Port) before another one, and takes out of the
//! guest's frames what is for that address. Nothing of it leaves the process.
//!
//! Several queues of an interface have a port each, with one service behind them: Linux changes queues within a
//! connection.
//!
//! The guest is hostile: connections, their buffers and their time are bounded (see [`MetadataPort`]), and a request
//! is 4 KiB at most.
//!
//! ```
//! use serde_json::json;
//! use umbra_mmds::Metadata;
//!
//! let data = Metadata::new(51_200);
//! data.put(json!({ "meta-data": { "instance-id": "i-1", "hostname": "a" } }))?;
//! data.patch(json!({ "meta-data": { "hostname": "b" } }))?;
//! assert_eq!(data.at("/meta-data/hostname"), Some(json!("b")));
//! assert_eq!(data.at("/meta-data/instance-id"), Some(json!("i-1")));
//! # Ok::<(), umbra_mmds::MetadataError>(())
//! ```
#![forbid(unsafe_code)]

mod data;
mod http;
mod port;
mod service;
mod stack;
mod token;

pub use data::{Metadata, MetadataConfig, MetadataError, Version};
pub use http::{Request, Response};
pub use port::MetadataPort;

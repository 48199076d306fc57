//! What a machine is like at one moment.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::client::{Client, ClientError, Request};
use crate::counters::Counters;

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A look at a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// What was seen.
    pub seen: Seen,
}

/// What is seen of a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// It is there, and has an inside while it has a guest.
    There(Info, Option<Inside>),
    /// Nobody serves it any more.
    Gone,
    /// Somebody does, and gives no answer, or one that makes no sense.
    Silent,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// Its name.
    pub id: String,
    /// Where it is in its life.
    pub state: String,
    /// How often its guest has begun.
    pub boots: u64,
}

/// What is inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Inside {
    /// What the MMU has counted.
    pub mmu: Counters,
    /// What the processors have.
    pub cpus: Vec<Cpu>,
    /// What the devices have.
    pub devices: Vec<Device>,
}

/// A processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Cpu {
    /// What it has counted.
    pub counters: Counters,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: String,
    /// What it has counted.
    pub counters: Counters,
}

impl Sample {
    /// Looks at a machine. One that is not there is no error.
    pub fn take(client: &Client) -> Self {
        let info = get(client, "/v1/vm");
        let inside = get(client, "/v1/inspect");
        let seen = match (info, inside) {
            (Ok(info), Ok(inside)) => Seen::There(info, Some(inside)),
            // It has not begun, or has ended meanwhile.
            (Ok(info), Err(_)) => Seen::There(info, None),
            (Err(ClientError::Slow(_) | ClientError::Odd(_)), _) => Seen::Silent,
            (Err(_), _) => Seen::Gone,
        };
        Self {
            at: Instant::now(),
            seen,
        }
    }
}

fn get<T: for<'a> Deserialize<'a>>(client: &Client, path: &str) -> Result<T, ClientError> {
    let request = Request {
        patience: PATIENCE,
        ..Request::get(path)
    };
    let answer = client.ask(&request)?;
    serde_json::from_str(&answer.body).map_err(|error| ClientError::Odd(error.to_string()))
}

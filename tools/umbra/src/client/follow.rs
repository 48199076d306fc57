//! A stream of events, one at a time.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::ClientError;
use super::events::{Reader, Told};

/// How long the server may say nothing; it says that it is there every fifteen seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// What happens, until the machine has ended.
pub struct Following<'a> {
    runtime: &'a Runtime,
    body: Incoming,
    reader: Reader,
}

impl<'a> Following<'a> {
    pub(super) fn new(runtime: &'a Runtime, body: Incoming) -> Self {
        Self {
            runtime,
            body,
            reader: Reader::default(),
        }
    }

    /// Waits for the next event; `None` when the server has nothing more to tell.
    ///
    /// # Errors
    /// If the connection ends otherwise, or what comes is no event.
    pub fn next(&mut self) -> Result<Option<Told>, ClientError> {
        loop {
            if let Some(told) = self.reader.next()? {
                return Ok(Some(told));
            }
            let body = &mut self.body;
            let frame = self
                .runtime
                .block_on(async { timeout(SILENCE, body.frame()).await });
            match frame.map_err(|_| ClientError::Slow(SILENCE))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.reader.push(&data);
                    }
                }
            }
        }
    }
}

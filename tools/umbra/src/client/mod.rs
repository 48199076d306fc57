//! A client of a machine's API: one request at a time, each on a connection of its own, for commands that wait.
//!
//! What a server can do to it is bounded: an answer has so many bytes ([`ANSWER_MAX`]) and so much time
//! ([`Request::patience`]), a stream says something at least every minute.

mod error;
mod events;
mod follow;

pub use error::ClientError;
pub use follow::Following;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Bytes of an answer. A large machine's page tables are some megabytes of text. What tests say is shorter.
pub const ANSWER_MAX: usize = if cfg!(test) { 1 << 10 } else { 256 << 20 };
/// How long an answer may take that waits for nobody.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub method: String,
    /// The path, and what is behind it.
    pub path: String,
    /// The body, if there is one.
    pub body: Option<String>,
    /// How long the answer may take.
    pub patience: Duration,
}

impl Request {
    /// Asks for what is there.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET".into(),
            path: path.into(),
            body: None,
            patience: PATIENCE,
        }
    }
}

/// What was answered: no refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, which may be empty.
    pub body: String,
}

/// Asks at one socket.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Makes one; nobody is asked yet.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new(socket: &Path) -> std::io::Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Ok(Self {
            socket: socket.to_owned(),
            runtime: runtime.enable_io().enable_time().build()?,
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// If nobody answers, or the answer is a refusal.
    pub fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        let all = async {
            let (status, body) = self.begin(request).await?;
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            let body = body.map_err(|error| match error.downcast() {
                Ok(error) => ClientError::Broken(*error),
                Err(_) => ClientError::TooLong,
            })?;
            let body =
                String::from_utf8(body.to_bytes().into()).map_err(|_| ClientError::NoText)?;
            match status {
                ..400 => Ok(Answer { status, body }),
                _ => Err(ClientError::refused(status, body)),
            }
        };
        self.runtime.block_on(async {
            let answered = timeout(request.patience, all).await;
            answered.unwrap_or(Err(ClientError::Slow(request.patience)))
        })
    }

    /// Follows what happens, from the event after this number on; from now on if there is no number.
    ///
    /// # Errors
    /// If nobody answers, or the answer is a refusal.
    pub fn follow(&self, since: Option<u64>) -> Result<Following<'_>, ClientError> {
        let since = since.map(|number| format!("?since={number}"));
        let request = Request::get(format!("/v1/events{}", since.unwrap_or_default()));
        let (status, body) = self.runtime.block_on(async {
            let begun = timeout(PATIENCE, self.begin(&request)).await;
            begun.unwrap_or(Err(ClientError::Slow(PATIENCE)))
        })?;
        if status < 400 {
            return Ok(Following::new(&self.runtime, body));
        }
        let text = self.runtime.block_on(async {
            let rest = timeout(PATIENCE, Limited::new(body, ANSWER_MAX).collect()).await;
            rest.ok().and_then(Result::ok)
        });
        let text = text.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        Err(ClientError::refused(status, text.unwrap_or_default()))
    }

    async fn begin(&self, request: &Request) -> Result<(u16, Incoming), ClientError> {
        let path = || self.socket.clone();
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| match error.kind() {
            ErrorKind::NotFound => ClientError::NoSocket { path: path() },
            ErrorKind::ConnectionRefused => ClientError::NobodyListens { path: path() },
            _ => ClientError::Connect {
                path: path(),
                source: error,
            },
        })?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its end is that of what is asked and read through it.
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(request.body.clone().unwrap_or_default()));
        let http = hyper::Request::builder()
            .method(request.method.as_str())
            .uri(&request.path)
            .header("Host", "localhost")
            .header("Accept", "*/*")
            .header("Content-Type", "application/json")
            .body(body);
        let http = http.map_err(|error| ClientError::NoRequest(error.to_string()))?;
        let answer = sender.send_request(http).await?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }
}

#[cfg(test)]
mod tests;

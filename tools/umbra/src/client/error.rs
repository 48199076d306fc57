//! Why there is no answer, or none that helps.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::status::Status;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is at the path.
    #[error("there is no socket {0}; start `umbra serve --api-sock {0}` first", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// Who made the socket has gone.
    #[error("nobody listens at {0}; start `umbra serve --api-sock {0}` first", path.display())]
    NobodyListens {
        /// The path.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection has ended too early, or it is not HTTP.
    #[error("the answer did not come, or not whole")]
    Broken(#[from] hyper::Error),
    /// The stream of events has ended, and the machine has not.
    #[error("the monitor has ended, and told nothing of a machine's end")]
    Left,
    /// It takes too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Slow(Duration),
    /// There is too much of it.
    #[error("the answer is longer than anything that is expected")]
    TooLong,
    /// It is no text.
    #[error("the answer is no text")]
    NoText,
    /// It is not what was asked for.
    #[error("the answer is not as it should be: {0}")]
    Odd(String),
    /// It cannot be asked so.
    #[error("this is no request: {0}")]
    NoRequest(String),
    /// The API says no.
    #[error("{}", said(.0))]
    Refused(Box<Refusal>),
}

/// What the API says when it says no.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// What is wrong, for programs.
    pub code: Option<String>,
    /// The field or parameter that is wrong.
    pub field: Option<String>,
    /// What is wrong, for people.
    pub message: String,
    /// What to do.
    pub remedy: Option<String>,
    /// All of it, as it came.
    pub body: String,
}

/// `MESSAGE (CODE, FIELD): REMEDY`.
fn said(refusal: &Refusal) -> String {
    let mut text = refusal.message.clone();
    let parts: Vec<&str> = [&refusal.code, &refusal.field]
        .into_iter()
        .filter_map(Option::as_deref)
        .collect();
    if !parts.is_empty() {
        text.push_str(&format!(" ({})", parts.join(", ")));
    }
    if let Some(remedy) = &refusal.remedy {
        text.push_str(&format!(": {remedy}"));
    }
    text
}

impl ClientError {
    /// Reads a refusal: one of `/v1`, one of Firecracker's, or one of whoever else serves there.
    pub fn refused(status: u16, body: String) -> Self {
        let value: Value = serde_json::from_str(&body).unwrap_or_default();
        let error = &value["error"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let refusal = match (text(&error["message"]), text(&value["fault_message"])) {
            (Some(message), _) => Refusal {
                code: text(&error["code"]),
                field: text(&error["field"]),
                message,
                remedy: text(&error["remedy"]),
                ..Refusal::default()
            },
            (None, Some(message)) => Refusal {
                code: text(&value["code"]),
                message,
                ..Refusal::default()
            },
            (None, None) => Refusal {
                message: format!("the request was refused with status {status}"),
                ..Refusal::default()
            },
        };
        Self::Refused(Box::new(Refusal {
            status,
            body,
            ..refusal
        }))
    }

    /// Returns how the command ends by it.
    pub fn status(&self) -> Status {
        match self {
            Self::Refused(_) => Status::Refused,
            Self::NoRequest(_) => Status::BadInput,
            _ => Status::Unreachable,
        }
    }
}

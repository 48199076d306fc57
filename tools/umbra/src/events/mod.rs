//! `umbra events`: what happens to a machine, one line an event.
//!
//! ```text
//! 2026-01-02T03:04:05.678Z     7 device_added id=disk1 kind=blk
//! ```

pub mod line;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::args::Events;
use crate::client::{Client, ClientError, Request};
use crate::out;
use crate::status::Status;

/// A piece of what has happened, as `GET /v1/events/log` gives it.
#[derive(Deserialize)]
pub struct Page {
    /// Events that are no longer kept.
    pub missed: u64,
    next_since: u64,
    /// Events that are.
    pub events: Vec<Value>,
}

impl Page {
    /// Reads it.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(body: &str) -> Result<Self, ClientError> {
        serde_json::from_str(body).map_err(|error| ClientError::Odd(error.to_string()))
    }
}

/// Prints what happens until the machine has ended.
pub fn run(arguments: &Events) -> Result<Status> {
    let client = Client::new(&arguments.api_sock)?;
    let printer = Printer {
        json: arguments.json,
    };
    match arguments.no_follow {
        true => look_back(&client, arguments.since.unwrap_or(0), &printer)?,
        false => follow(&client, arguments.since, &printer)?,
    }
    Ok(Status::Success)
}

fn follow(client: &Client, since: Option<u64>, printer: &Printer) -> Result<()> {
    let mut following = client.follow(since)?;
    while let Some(told) = following.next()? {
        let value = serde_json::from_str(&told.data);
        let value: Value = value.map_err(|error| ClientError::Odd(error.to_string()))?;
        if told.name == "missed" {
            printer.missed(value["missed"].as_u64().unwrap_or_default())?;
            continue;
        }
        printer.event(&value)?;
        if told.name == "ended" {
            return Ok(());
        }
    }
    Err(ClientError::Left.into())
}

fn look_back(client: &Client, mut since: u64, printer: &Printer) -> Result<()> {
    loop {
        let answer = client.ask(&Request::get(format!("/v1/events/log?since={since}")))?;
        let page = Page::parse(&answer.body)?;
        if page.missed > 0 {
            printer.missed(page.missed)?;
        }
        for event in &page.events {
            printer.event(event)?;
        }
        // The number of an empty piece is where it began.
        if page.events.is_empty() || page.next_since <= since {
            return Ok(());
        }
        since = page.next_since;
    }
}

struct Printer {
    json: bool,
}

impl Printer {
    fn event(&self, event: &Value) -> Result<()> {
        match self.json {
            true => out::line(&event.to_string()),
            false => out::line(&line::event(event)),
        }
    }

    fn missed(&self, missed: u64) -> Result<()> {
        match self.json {
            true => out::line(&serde_json::json!({ "missed": missed }).to_string()),
            false => out::line(&line::missed(missed)),
        }
    }
}

//! `umbra ctl`: asks a machine's API, and shows the answer.

mod operation;
mod request;
mod show;

use anyhow::Result;

use crate::args::ctl::Ctl;
use crate::client::{Answer, Client, ClientError};
use crate::out;
use crate::status::Status;
use operation::Operation;

/// Asks, and prints.
pub fn run(arguments: &Ctl) -> Result<Status> {
    let (operation, request) = request::of(&arguments.verb)?;
    let client = Client::new(&arguments.api_sock)?;
    let answer = match client.ask(&request) {
        Err(ClientError::Refused(refusal)) if arguments.json => {
            as_it_is(&refusal.body)?;
            return Err(ClientError::Refused(refusal).into());
        }
        answer => answer?,
    };
    match (arguments.json, operation) {
        (true, _) => as_it_is(&answer.body)?,
        (false, None) => out::print(&show::anything(&answer.body))?,
        (false, Some(operation)) => {
            out::print(&show::answer(operation, &request.path, &answer.body)?)?;
        }
    }
    Ok(match (operation, &answer) {
        // The guest was asked, and has not let it go.
        (Some(Operation::Remove), Answer { status: 202, .. }) => Status::Failed,
        _ => Status::Success,
    })
}

/// Prints a body, whose end is that of a line.
fn as_it_is(body: &str) -> Result<()> {
    match body {
        "" => Ok(()),
        text => out::line(text.trim_end_matches('\n')),
    }
}

//! `umbra top`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// `umbra top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The unix sockets of the machines' APIs; may be repeated
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub api_sock: Vec<PathBuf>,
    /// Time between two looks, from 0.1 to 3600
    #[arg(long, value_name = "SECONDS", value_parser = interval, default_value = "2")]
    pub interval: Duration,
    /// End after so many of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (0.1..=3600.0).contains(number));
    let number =
        number.ok_or_else(|| format!("{text:?} is no number of seconds from 0.1 to 3600"))?;
    Ok(Duration::from_secs_f64(number))
}

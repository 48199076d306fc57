//! `/logger`: where messages go, and which.

use std::borrow::Cow;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is not as it should be.
    Warn,
    /// What happens.
    Info,
    /// How.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Reads its name, however it is written.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }
}

impl JsonSchema for LogLevel {
    fn schema_name() -> Cow<'static, str> {
        "LogLevel".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        // In capitals or not; patterns have no word for that.
        let either = |c: char| format!("[{}{c}]", c.to_ascii_uppercase());
        let names = ["off", "error", "warn", "warning", "info", "debug", "trace"]
            .map(|name| name.chars().map(either).collect::<String>());
        json_schema!({
            "description": "How much is said, in capitals or not.",
            "type": "string",
            "pattern": format!("^({})$", names.join("|")),
            "examples": ["Off", "Error", "Warning", "Info", "Debug", "Trace"],
        })
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::parse(&name).ok_or_else(|| D::Error::custom("Invalid LevelFilter"))
    }
}

/// What changes of the log; what is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// A file or a pipe.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// How much is said; Info at the beginning.
    #[serde(default)]
    pub level: Option<LogLevel>,
    /// Each line says its level.
    #[serde(default)]
    pub show_level: Option<bool>,
    /// Each line says which file and line of the program it is from.
    #[serde(default)]
    pub show_log_origin: Option<bool>,
    /// Only of modules whose names begin so.
    #[serde(default)]
    pub module: Option<String>,
}

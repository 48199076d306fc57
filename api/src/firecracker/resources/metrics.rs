//! `/metrics`: where counters go.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Where they go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// A file or a pipe; a line of JSON each time.
    pub metrics_path: PathBuf,
    /// Each line says whose it is.
    #[serde(default)]
    pub emit_id: bool,
    /// Said again in each line.
    #[serde(default)]
    pub properties: Option<serde_json::Map<String, serde_json::Value>>,
}

impl MetricsConfig {
    /// To a file or a pipe, with nothing besides.
    pub fn to(metrics_path: PathBuf) -> Self {
        Self {
            metrics_path,
            emit_id: false,
            properties: None,
        }
    }
}

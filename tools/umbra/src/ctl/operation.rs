//! What the verbs reach: one row for each operation of `/v1`.

use crate::client::{PATIENCE, Request};

/// An operation of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Server,
    Openapi,
    Info,
    Spec,
    PutSpec,
    Start,
    Pause,
    Resume,
    Stop,
    Reset,
    PowerButton,
    CtrlAltDel,
    Nmi,
    Cpus,
    CpuPause,
    CpuResume,
    Devices,
    Device,
    Add,
    Change,
    Remove,
    Inspect,
    Map,
    Generation,
    Mmu,
    PageTables,
    Metrics,
    Events,
}

impl Operation {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 28] = {
        use Operation::*;
        [
            Server,
            Openapi,
            Info,
            Spec,
            PutSpec,
            Start,
            Pause,
            Resume,
            Stop,
            Reset,
            PowerButton,
            CtrlAltDel,
            Nmi,
            Cpus,
            CpuPause,
            CpuResume,
            Devices,
            Device,
            Add,
            Change,
            Remove,
            Inspect,
            Map,
            Generation,
            Mmu,
            PageTables,
            Metrics,
            Events,
        ]
    };

    /// Its method and its path, in which `{}` is a name.
    pub fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::Server => ("GET", "/v1"),
            Self::Openapi => ("GET", "/v1/openapi.json"),
            Self::Info => ("GET", "/v1/vm"),
            Self::Spec => ("GET", "/v1/vm/spec"),
            Self::PutSpec => ("PUT", "/v1/vm/spec"),
            Self::Start => ("POST", "/v1/vm/start"),
            Self::Pause => ("POST", "/v1/vm/pause"),
            Self::Resume => ("POST", "/v1/vm/resume"),
            Self::Stop => ("POST", "/v1/vm/stop"),
            Self::Reset => ("POST", "/v1/vm/reset"),
            Self::PowerButton => ("POST", "/v1/vm/power-button"),
            Self::CtrlAltDel => ("POST", "/v1/vm/ctrl-alt-del"),
            Self::Nmi => ("POST", "/v1/vm/nmi"),
            Self::Cpus => ("GET", "/v1/vm/cpus"),
            Self::CpuPause => ("POST", "/v1/vm/cpus/{}/pause"),
            Self::CpuResume => ("POST", "/v1/vm/cpus/{}/resume"),
            Self::Devices => ("GET", "/v1/devices"),
            Self::Device => ("GET", "/v1/devices/{}"),
            Self::Add => ("PUT", "/v1/devices/{}"),
            Self::Change => ("PATCH", "/v1/devices/{}"),
            Self::Remove => ("DELETE", "/v1/devices/{}"),
            Self::Inspect => ("GET", "/v1/inspect"),
            Self::Map => ("GET", "/v1/inspect/map"),
            Self::Generation => ("GET", "/v1/inspect/generation"),
            Self::Mmu => ("GET", "/v1/inspect/mmu"),
            Self::PageTables => ("GET", "/v1/inspect/page-tables"),
            Self::Metrics => ("GET", "/metrics/prometheus"),
            Self::Events => ("GET", "/v1/events/log"),
        }
    }

    /// Makes a request of it, without a body.
    pub fn request(self, name: &str, query: &[(&str, Option<String>)]) -> Request {
        let (method, path) = self.route();
        let mut path = path.replace("{}", name);
        let said = query
            .iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (number, (key, value)) in said.enumerate() {
            let sign = if number == 0 { '?' } else { '&' };
            path.push_str(&format!("{sign}{key}={value}"));
        }
        Request {
            method: method.into(),
            path,
            body: None,
            patience: PATIENCE,
        }
    }
}

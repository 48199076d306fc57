//! The virtio console, and what is at the host's end of its ports.

use std::sync::Arc;

use umbra_devices::virtio::console::{FileHost, PortHost, SocketHost};
use umbra_devices::virtio::{Console, ConsoleControl, ConsoleOptions, PortOptions};

use crate::console::Output;
use crate::error::{BuildError, PortError};
use crate::spec::{ConsoleSpec, PortEnd, PortSpec};
use crate::terminal::{PortInput, TerminalHost};

/// Makes the device, what changes it, and where input goes if it has the machine's console, which is at `output`.
pub fn make(
    id: &str,
    spec: &ConsoleSpec,
    output: Option<&Output>,
) -> Result<(Console, ConsoleControl, Option<Arc<PortInput>>), BuildError> {
    let mut input = None;
    let mut ports = Vec::new();
    for port in &spec.ports {
        let host = connect(port, output, &mut input).map_err(|source| BuildError::Port {
            id: id.to_owned(),
            source,
        })?;
        ports.push(PortOptions {
            name: port.name.clone(),
            is_console: port.name.is_none(),
            host,
        });
    }
    let has_terminal = spec.ports.first().map(|port| &port.end) == Some(&PortEnd::Console);
    let options = ConsoleOptions {
        name: id.to_owned(),
        ports,
        // Until somebody says it, it is not known.
        size: has_terminal.then_some((0, 0)),
    };
    let (device, control) = Console::new(options).map_err(|source| BuildError::Virtio {
        id: id.to_owned(),
        source,
    })?;
    Ok((device, control, input))
}

fn connect(
    port: &PortSpec,
    output: Option<&Output>,
    input: &mut Option<Arc<PortInput>>,
) -> Result<Box<dyn PortHost>, PortError> {
    Ok(match &port.end {
        PortEnd::Console => {
            let output = output.ok_or(PortError::NoTerminal)?;
            let typed = PortInput::new().map_err(PortError::Event)?;
            *input = Some(typed.clone());
            let host = TerminalHost::new(output.clone(), typed);
            Box::new(host.map_err(PortError::Event)?)
        }
        PortEnd::Socket(path) => Box::new(SocketHost::listen(path)?),
        PortEnd::File(path) => {
            let host = FileHost::create(path).map_err(|source| PortError::File {
                path: path.clone(),
                source,
            });
            Box::new(host?)
        }
    })
}

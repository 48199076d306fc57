//! What can be in a path, and behind it.

use schemars::{Schema, SchemaGenerator};

use crate::openapi::{self, Parameter, Place};

/// How long a guest has to let a device go where nothing is said.
pub const LET_GO_MS: u64 = 10_000;
/// How long it can have, and how long events can be waited for.
pub const MAX_WAIT_MS: u64 = 600_000;
/// How many events there are in a piece where nothing is said, and at the most.
pub const PAGE: u64 = 1000;

const fn query(
    name: &'static str,
    description: &'static str,
    schema: openapi::SchemaOf,
) -> Parameter {
    Parameter {
        place: Place::Query,
        name,
        description,
        schema,
    }
}

pub const SINCE: Parameter = query(
    "since",
    "The number of the event that was seen last; 0 for all that are kept. A stream without it begins with now.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0 }),
);
pub const LIMIT: Parameter = query(
    "limit",
    "The most events.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": PAGE, "default": PAGE }),
);
pub const WAIT_MS: Parameter = query(
    "wait_ms",
    "How long an event is waited for if there is none, in milliseconds.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": MAX_WAIT_MS, "default": 0 }),
);
pub const TIMEOUT_MS: Parameter = query(
    "timeout_ms",
    "How long the guest has, in milliseconds.",
    |_| {
        schemars::json_schema!({
            "type": "integer", "minimum": 0, "maximum": MAX_WAIT_MS, "default": LET_GO_MS
        })
    },
);
pub const FORCE: Parameter = query(
    "force",
    "Take the device away when the guest has not let it go in time: to the guest it is as if it had been pulled out.",
    |_| schemars::json_schema!({ "type": "boolean", "default": false }),
);
pub const WHICH_CPU: Parameter = query(
    "cpu",
    "The number of the processor.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": 255, "default": 0 }),
);
pub const ADDRESS: Parameter = query(
    "address",
    "Only what translates this linear address, decimal, or hexadecimal behind 0x.",
    |_| schemars::json_schema!({ "type": "string", "pattern": "^(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})$" }),
);
pub const ID: Parameter = Parameter {
    place: Place::Path,
    name: "id",
    description: "The device's name: 1 to 64 letters, digits, `_`, `-` and `.`.",
    schema: |_| schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$" }),
};
pub const CPU: Parameter = Parameter {
    place: Place::Path,
    name: "cpu",
    description: "The processor's number.",
    schema: cpu_schema,
};

fn cpu_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": 254 })
}

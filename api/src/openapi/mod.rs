//! The OpenAPI document: what the server can be asked, made from the types that it reads and writes.
//!
//! ```text
//!   operations() ── a list of Described ──> document ── paths, and schemas by type ──> JSON, version 3.1
//!     firecracker::described                 schemas: what is read and what is written are two contracts
//! ```
//! An operation is described once, beside its interface ([`firecracker::described`]); whoever adds an interface adds
//! its list to [`operations`]. `docs/openapi.json` is a copy for readers, which a test compares with this.

mod described;
mod document;
mod polish;
mod schemas;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

pub use described::{Answer, Content, Described, Parameter, Place, SchemaOf};
pub use document::document;

use crate::{firecracker, v1};

/// Returns every operation that the server has.
pub fn operations() -> Vec<Described> {
    let mut all = firecracker::described::operations();
    all.extend(v1::routes::operations());
    all
}

/// Returns the document, as readable text. It is made when somebody asks first.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let document = document("Umbra", env!("CARGO_PKG_VERSION"), &operations());
        let text = serde_json::to_string_pretty(&document);
        text.expect("values have string keys and finite numbers") + "\n"
    });
    &TEXT
}

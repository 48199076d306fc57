//! What is said of an operation.

use schemars::{JsonSchema, Schema, SchemaGenerator};

/// How the schema of a type is made.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// An operation: what it is called, what it is asked with, and what it answers.
#[derive(Clone, Debug)]
pub struct Described {
    /// The verb, in capitals.
    pub method: &'static str,
    /// The path; each `{name}` in it is one of the parameters.
    pub path: &'static str,
    /// A name for generated clients, of which each operation has one of its own, for ever.
    pub id: &'static str,
    /// A sentence.
    pub summary: &'static str,
    /// What it belongs to.
    pub tag: &'static str,
    /// It will go.
    pub deprecated: bool,
    /// What is said in the path and behind it.
    pub parameters: Vec<Parameter>,
    /// The body of a request, if it has one.
    pub request: Option<Content>,
    /// The body has to be there.
    pub required: bool,
    /// What comes back, each status once.
    pub answers: Vec<Answer>,
}

/// Where a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A part of the path. It has to be there.
    Path,
    /// Behind the path. It may be left out.
    Query,
}

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Where it is.
    pub place: Place,
    /// Its name.
    pub name: &'static str,
    /// A sentence.
    pub description: &'static str,
    /// What it may be.
    pub schema: SchemaOf,
}

/// A body: its kind, and what is in it.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Its media type.
    pub media: &'static str,
    /// What is in it.
    pub schema: SchemaOf,
}

impl Content {
    /// A value of a type, as JSON.
    pub fn json<T: JsonSchema>() -> Self {
        Self {
            media: "application/json",
            schema: SchemaGenerator::subschema_for::<T>,
        }
    }
}

/// What comes back.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// A sentence.
    pub description: &'static str,
    /// The body, if there is one.
    pub content: Option<Content>,
}

impl Described {
    /// An operation that is asked with nothing and answers nothing, yet.
    pub fn new(method: &'static str, path: &'static str, id: &'static str) -> Self {
        Self {
            method,
            path,
            id,
            summary: "",
            tag: "",
            deprecated: false,
            parameters: Vec::new(),
            request: None,
            required: false,
            answers: Vec::new(),
        }
    }

    /// Says what it does, in a sentence, and what it belongs to.
    #[must_use]
    pub fn about(mut self, tag: &'static str, summary: &'static str) -> Self {
        (self.tag, self.summary) = (tag, summary);
        self
    }

    /// Says what is in its path, or behind it.
    #[must_use]
    pub fn parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Says which JSON it is asked with.
    #[must_use]
    pub fn takes<T: JsonSchema>(mut self) -> Self {
        (self.request, self.required) = (Some(Content::json::<T>()), true);
        self
    }

    /// The same, of a body that may be left out.
    #[must_use]
    pub fn may_take<T: JsonSchema>(mut self) -> Self {
        self.request = Some(Content::json::<T>());
        self
    }

    /// Says that it can answer with JSON.
    #[must_use]
    pub fn gives<T: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer {
            status,
            description,
            content: Some(Content::json::<T>()),
        });
        self
    }

    /// Says that it can answer with nothing but a status.
    #[must_use]
    pub fn done(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer {
            status,
            description,
            content: None,
        });
        self
    }
}

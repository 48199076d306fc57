//! Text for people.

/// Replaces what would move a terminal's cursor, or worse.
pub fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

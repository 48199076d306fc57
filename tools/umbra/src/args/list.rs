//! Options that are lists: `WORD,KEY=VALUE,KEY=VALUE`.

/// Splits a list into keys and values. Two commas stand for one. A word alone is a key without a value; the
/// first one is a value without a key.
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let text = text.replace(",,", "\0");
    let parts = text.split(',').map(|part| part.replace('\0', ","));
    parts
        .enumerate()
        .map(|(n, part)| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if n == 0 => (String::new(), part),
            None => (part, String::new()),
        })
        .collect()
}

/// Puts a value where there is none yet.
pub fn set<T>(place: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{key:?} is one too many")),
    }
}

/// Reads a number.
pub fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    let refused = |_| format!("{key}={value:?} is no number that it can be");
    value.parse().map_err(refused)
}

/// Reads `on` or `off`.
pub fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}={value:?} is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_word_and_pairs() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let table = [
            ("", vec![pair("", "")]),
            ("a,b", vec![pair("", "a"), pair("b", "")]),
            ("a=b,c=d=e", vec![pair("a", "b"), pair("c", "d=e")]),
            ("a,,b,k=,,", vec![pair("", "a,b"), pair("k", ",")]),
        ];
        for (text, expected) in table {
            assert_eq!(pairs(text), expected, "{text}");
        }
    }
}

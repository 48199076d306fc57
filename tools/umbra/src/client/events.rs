//! Server-Sent Events (HTML, 9.2), as far as the API uses them: `event`, `data`, comments. Lines end with a line feed.

use super::ClientError;

/// Bytes of an event.
const EVENT_MAX: usize = 1 << 20;

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// What it says.
    pub data: String,
}

/// Reads events from pieces of any size.
#[derive(Debug, Default)]
pub struct Reader {
    /// What is read and belongs to no event yet.
    rest: Vec<u8>,
    /// Bytes of it that were looked at: there is no line feed in them.
    seen: usize,
    told: Told,
}

impl Reader {
    /// Takes a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
    }

    /// Returns the next event that is there as a whole.
    ///
    /// # Errors
    /// If it is too long, or no text.
    pub fn next(&mut self) -> Result<Option<Told>, ClientError> {
        while let Some(found) = self.rest[self.seen..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = self.rest.drain(..=self.seen + found).collect();
            self.seen = 0;
            let line = std::str::from_utf8(&line).map_err(|_| ClientError::NoText)?;
            if let Some(told) = self.line(line.trim_end_matches(['\r', '\n'])) {
                return Ok(Some(told));
            }
        }
        self.seen = self.rest.len();
        match self.seen + self.told.data.len() {
            ..EVENT_MAX => Ok(None),
            _ => Err(ClientError::TooLong),
        }
    }

    /// Reads a line; returns the event that ends with it.
    fn line(&mut self, line: &str) -> Option<Told> {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                let told = std::mem::take(&mut self.told);
                return (!told.data.is_empty()).then_some(told);
            }
            "event" => self.told.name = value.to_owned(),
            "data" => {
                if !self.told.data.is_empty() {
                    self.told.data.push('\n');
                }
                self.told.data.push_str(value);
            }
            // A comment, or what is for browsers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_pieces_of_every_size() {
        let stream = b": here\n\nid: 1\nevent: started\ndata: {\"boot\":1}\n\ndata:a\ndata: b\n\n\
                       event: nothing\n\nevent: paused\r\ndata: {}\r\n\r\nevent: cut";
        for size in 1..stream.len() {
            let (mut reader, mut all) = (Reader::default(), Vec::new());
            for piece in stream.chunks(size) {
                reader.push(piece);
                while let Some(told) = reader.next().unwrap() {
                    all.push((told.name, told.data));
                }
            }
            let expected = [("started", "{\"boot\":1}"), ("", "a\nb"), ("paused", "{}")];
            let expected = expected.map(|(name, data)| (name.to_owned(), data.to_owned()));
            assert_eq!(all, expected, "{size}");
        }
    }

    #[test]
    fn what_never_ends_and_what_is_no_text_is_refused() {
        let mut reader = Reader::default();
        reader.push(&vec![b'x'; EVENT_MAX]);
        assert!(matches!(reader.next(), Err(ClientError::TooLong)));
        let mut reader = Reader::default();
        reader.push(b"data: \xff\n\n");
        assert!(matches!(reader.next(), Err(ClientError::NoText)));
    }
}

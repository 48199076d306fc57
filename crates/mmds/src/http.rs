//! HTTP as far as the service needs it: requests without a body, answers with one.

/// Bytes of a request.
pub const REQUEST_MAX: usize = 4096;
/// Lines of a request's head.
const LINES: usize = 32;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub method: String,
    /// What is asked for.
    pub target: String,
    /// Names and values; names are compared without regard to case.
    pub headers: Vec<(String, String)>,
    /// The connection stays for another one.
    pub keeps: bool,
}

/// What came so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More has to come.
    Partial,
    /// A request, of so many bytes.
    Whole(Request, usize),
    /// Nonsense, or more than a request may be.
    Bad,
}

impl Request {
    /// Reads what came, [`REQUEST_MAX`] bytes at most. A body, which none of the service's operations has, is passed over if it is there already.
    pub fn parse(bytes: &[u8]) -> Parsed {
        let mut headers = [httparse::EMPTY_HEADER; LINES];
        let mut request = httparse::Request::new(&mut headers);
        let head = match request.parse(bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if bytes.len() < REQUEST_MAX => return Parsed::Partial,
            Ok(httparse::Status::Partial) | Err(_) => return Parsed::Bad,
        };
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Parsed::Bad;
        };
        let mut all = Vec::new();
        for header in request.headers.iter() {
            match std::str::from_utf8(header.value) {
                Ok(value) => all.push((header.name.to_owned(), value.trim().to_owned())),
                Err(_) => return Parsed::Bad,
            }
        }
        let mut request = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: all,
            keeps: minor == 1,
        };
        if let Some(connection) = request.header("Connection") {
            request.keeps = match connection.to_ascii_lowercase().as_str() {
                "close" => false,
                "keep-alive" => true,
                _ => request.keeps,
            };
        }
        let body = match request.header("Content-Length").map(str::parse::<usize>) {
            None => 0,
            Some(Ok(len)) if len <= REQUEST_MAX.saturating_sub(head) => len,
            Some(_) => return Parsed::Bad,
        };
        match head + body <= bytes.len() {
            true => Parsed::Whole(request, head + body),
            false => Parsed::Partial,
        }
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// One more header.
    pub more: Option<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Response {
    /// One with text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain",
            more: None,
            body: body.into(),
        }
    }

    /// One with JSON.
    pub fn json(body: String) -> Self {
        Self {
            content_type: "application/json",
            ..Self::text(200, body)
        }
    }

    /// Adds a header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.more = Some((name, value.into()));
        self
    }

    /// Writes it down.
    pub fn bytes(&self, keeps: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            501 => "Not Implemented",
            _ => "Service Unavailable",
        };
        let more = match &self.more {
            Some((name, value)) => format!("{name}: {value}\r\n"),
            None => String::new(),
        };
        format!(
            "HTTP/1.1 {} {reason}\r\nServer: MMDS\r\nConnection: {}\r\nContent-Type: {}\r\n{more}Content-Length: \
             {}\r\n\r\n{}",
            self.status,
            if keeps { "keep-alive" } else { "close" },
            self.content_type,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_or_partial_or_bad() {
        let whole = b"GET /a HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n";
        for len in 0..whole.len() {
            assert_eq!(Request::parse(&whole[..len]), Parsed::Partial, "{len}");
        }
        let Parsed::Whole(request, len) = Request::parse(whole) else {
            panic!("it is whole");
        };
        assert_eq!(
            (request.target.as_str(), len, request.keeps),
            ("/a", whole.len(), true)
        );
        assert_eq!(request.header("accept"), Some("application/json"));
        for bad in [
            &b"\0\0\0\0\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: \xff\r\n\r\n",
            &[b'x'; REQUEST_MAX],
        ] {
            assert_eq!(Request::parse(bad), Parsed::Bad, "{bad:?}");
        }
    }

    #[test]
    fn connections_stay_as_http_has_it() {
        for (head, keeps) in [
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", false),
        ] {
            let Parsed::Whole(request, _) = Request::parse(head.as_bytes()) else {
                panic!("{head}");
            };
            assert_eq!(request.keeps, keeps, "{head}");
        }
    }
}

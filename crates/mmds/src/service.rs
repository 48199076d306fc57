//! What is answered to a guest. Names of headers and meanings of statuses are those of Firecracker's and of EC2's
//! service (IMDS).

use std::time::Instant;

use serde_json::Value;

use crate::data::{Metadata, MetadataConfig, Version};
use crate::http::{Request, Response};
use crate::token::TTL_MAX;

const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
const TTL: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
/// Where tokens are.
const TOKENS: &str = "/latest/api/token";

/// Answers a request.
pub fn answer(
    data: &Metadata,
    config: &MetadataConfig,
    request: &Request,
    now: Instant,
) -> Response {
    let Some(path) = path(&request.target) else {
        return Response::text(400, "Invalid URI.");
    };
    match request.method.as_str() {
        "GET" => get(data, config, request, &path, now),
        "PUT" => put(data, request, &path, now),
        // Nobody waits for its body.
        "HEAD" => Response::text(405, "").with("Allow", "GET, PUT"),
        _ => Response::text(405, "Not allowed HTTP method.").with("Allow", "GET, PUT"),
    }
}

/// The path of a target: what is before a question mark, with one slash where there are several, and none at the end.
fn path(target: &str) -> Option<String> {
    let path = match target.strip_prefix("http://") {
        Some(absolute) => absolute.find('/').map_or("/", |at| &absolute[at..]),
        None => target,
    };
    let path = path.split(['?', '#']).next()?;
    if !path.starts_with('/') {
        return None;
    }
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    Some(format!("/{}", names.join("/")))
}

fn get(
    data: &Metadata,
    config: &MetadataConfig,
    request: &Request,
    path: &str,
    now: Instant,
) -> Response {
    let token = TOKEN.iter().find_map(|name| request.header(name));
    if config.version == Version::V2 {
        match token {
            None => {
                return Response::text(
                    401,
                    format!(
                        "No MMDS token provided. Use `{}` or `{}` header to specify the session token.",
                        TOKEN[0], TOKEN[1]
                    ),
                );
            }
            Some(token) if !data.tokens().is_good(token, now) => {
                return Response::text(401, "MMDS token not valid.");
            }
            Some(_) => {}
        }
    }
    let Some(value) = data.at(path) else {
        return Response::text(404, format!("Resource not found: {path}."));
    };
    let accept = request.header("Accept").unwrap_or_default();
    let wants_json = accept.split(',').any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("application/json")
    });
    if wants_json && !config.imds_compat {
        return Response::json(value.to_string());
    }
    match text(&value) {
        Some(text) => Response::text(200, text),
        None => Response::text(
            501,
            "Cannot retrieve value. The value has an unsupported type.",
        ),
    }
}

/// What a value is as text: a string as it is, the names in an object a line each, with a slash behind those that have
/// more below them. Others have no text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => {
            let line = |(name, value): (&String, &Value)| match value {
                Value::Object(_) => format!("{name}/"),
                _ => name.clone(),
            };
            Some(map.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

fn put(data: &Metadata, request: &Request, path: &str, now: Instant) -> Response {
    // A proxy has passed it on, which is what tokens are against.
    if request.header("X-Forwarded-For").is_some() {
        return Response::text(
            400,
            "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For",
        );
    }
    if path != TOKENS {
        return Response::text(404, format!("Resource not found: {path}."));
    }
    let found = TTL
        .iter()
        .find_map(|name| Some((*name, request.header(name)?)));
    let Some((name, value)) = found else {
        return Response::text(
            400,
            format!(
                "Token time to live value not found. Use `{}` or `{}` header to specify the token's lifetime.",
                TTL[0], TTL[1]
            ),
        );
    };
    let ttl = value.parse().ok().filter(|ttl| (1..=TTL_MAX).contains(ttl));
    let Some(ttl) = ttl else {
        return Response::text(
            400,
            format!(
                "Invalid time to live value provided for token: {value}. Please provide a value between 1 and \
                 {TTL_MAX}."
            ),
        );
    };
    match data.tokens().make(ttl, now) {
        Some(token) => Response::text(200, token).with(name, ttl.to_string()),
        None => Response::text(503, "The host has no random bytes for a token; ask again."),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::http::Parsed;

    fn data() -> Metadata {
        let data = Metadata::new(1000);
        data.put(
            json!({"latest": {"name": "violet", "more": {"deep": 1}, "list": ["a"], "on": true}}),
        )
        .unwrap();
        data
    }

    fn ask(data: &Metadata, config: MetadataConfig, head: &str) -> (u16, String) {
        let text = format!("{head}\r\n\r\n");
        let Parsed::Whole(request, _) = Request::parse(text.as_bytes()) else {
            panic!("{head}");
        };
        let response = answer(data, &config, &request, Instant::now());
        (response.status, response.body)
    }

    const JSON: &str = "\r\nAccept: text/html, application/json;q=0.9";

    #[test]
    fn values_come_as_json_or_text() {
        let (data, config) = (data(), MetadataConfig::default());
        for (path, json, status, body) in [
            ("/latest/name", true, 200, "\"violet\""),
            ("/latest/name", false, 200, "violet"),
            ("//latest///name/?a=b", false, 200, "violet"),
            ("http://169.254.169.254/latest/name", false, 200, "violet"),
            ("/latest", false, 200, "list\nmore/\nname\non"),
            ("/", false, 200, "latest/"),
            ("/latest/more", true, 200, r#"{"deep":1}"#),
            ("/latest/more/deep", true, 200, "1"),
            (
                "/latest/more/deep",
                false,
                501,
                "Cannot retrieve value. The value has an unsupported type.",
            ),
            (
                "/latest/list",
                false,
                501,
                "Cannot retrieve value. The value has an unsupported type.",
            ),
            ("/latest/list/0", false, 200, "a"),
            ("/none", false, 404, "Resource not found: /none."),
            ("none", false, 400, "Invalid URI."),
        ] {
            let head = format!("GET {path} HTTP/1.1{}", if json { JSON } else { "" });
            assert_eq!(
                ask(&data, config, &head),
                (status, body.to_owned()),
                "{path} {json}"
            );
        }
        let compat = MetadataConfig {
            imds_compat: true,
            ..config
        };
        let head = format!("GET /latest/name HTTP/1.1{JSON}");
        assert_eq!(ask(&data, compat, &head), (200, "violet".into()));
    }

    #[test]
    fn the_second_version_wants_a_token_and_the_first_does_not_mind_one() {
        let data = data();
        let v1 = MetadataConfig::default();
        let v2 = MetadataConfig {
            version: Version::V2,
            ..v1
        };
        let plain = "GET /latest/name HTTP/1.1";
        assert_eq!(ask(&data, v2, plain).0, 401);
        assert_eq!(
            ask(&data, v2, &format!("{plain}\r\nX-metadata-token: 00")).0,
            401
        );
        for (ttl, token) in [
            ("X-metadata-token-ttl-seconds", "x-metadata-token"),
            (
                "x-aws-ec2-metadata-token-ttl-seconds",
                "X-aws-ec2-metadata-token",
            ),
        ] {
            let put = format!("PUT {TOKENS} HTTP/1.1\r\n{ttl}: 60");
            let (status, made) = ask(&data, v2, &put);
            assert_eq!(status, 200, "{made}");
            let get = format!("{plain}\r\n{token}: {made}");
            assert_eq!(ask(&data, v2, &get), (200, "violet".into()));
            assert_eq!(ask(&data, v1, &get), (200, "violet".into()));
        }
        assert_eq!(
            ask(&data, v1, &format!("{plain}\r\nX-metadata-token: 00")).0,
            200
        );
        let old = data
            .tokens()
            .make(1, Instant::now() - Duration::from_secs(2));
        let get = format!("{plain}\r\nX-metadata-token: {}", old.unwrap());
        assert_eq!(ask(&data, v2, &get), (401, "MMDS token not valid.".into()));
    }

    #[test]
    fn tokens_are_refused_for_a_reason() {
        let data = data();
        let config = MetadataConfig::default();
        for (path, more, status, says) in [
            (
                "/latest",
                "X-metadata-token-ttl-seconds: 60",
                404,
                "Resource not found",
            ),
            (TOKENS, "Host: x", 400, "Token time to live value not found"),
            (
                TOKENS,
                "X-metadata-token-ttl-seconds: 0",
                400,
                "between 1 and 21600",
            ),
            (
                TOKENS,
                "X-metadata-token-ttl-seconds: 21601",
                400,
                "between 1 and 21600",
            ),
            (
                TOKENS,
                "X-metadata-token-ttl-seconds: soon",
                400,
                "between 1 and 21600",
            ),
            (
                TOKENS,
                "X-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 10.0.0.1",
                400,
                "X-Forwarded-For",
            ),
            (
                "/latest",
                "x-forwarded-for: 10.0.0.1",
                400,
                "X-Forwarded-For",
            ),
        ] {
            let (got, body) = ask(&data, config, &format!("PUT {path} HTTP/1.1\r\n{more}"));
            assert_eq!(got, status, "{more}: {body}");
            assert!(body.contains(says), "{more}: {body}");
        }
    }

    #[test]
    fn verbs_that_are_not_known_are_told_which_are() {
        for (verb, body) in [
            ("POST", "Not allowed HTTP method."),
            ("DELETE", "Not allowed HTTP method."),
            ("HEAD", ""),
        ] {
            let text = format!("{verb} / HTTP/1.1\r\n\r\n");
            let Parsed::Whole(request, _) = Request::parse(text.as_bytes()) else {
                panic!("{verb}");
            };
            let response = answer(
                &data(),
                &MetadataConfig::default(),
                &request,
                Instant::now(),
            );
            let expected = Response::text(405, body).with("Allow", "GET, PUT");
            assert_eq!(response, expected, "{verb}");
        }
    }
}

//! Requests, and what is made of their answers.

use super::Hub;
use std::io::{self, Read};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

/// The hub itself answers with one or two redirections.
const MAX_REDIRECTS: usize = 8;
/// The list of a repository's files is not longer.
const MAX_LISTING: u64 = 32 << 20;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) struct Failure {
    /// What happened, and what to do.
    pub(super) what: String,
    /// True if no answer came, so that the cache may serve instead.
    pub(super) unreachable: bool,
}

impl Failure {
    pub(super) fn answer(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            unreachable: false,
        }
    }
}

/// A file that the server is about to send.
pub(super) struct Incoming {
    pub(super) body: Body,
    /// How long it is, if the server says so.
    pub(super) length: Option<u64>,
    /// What the server calls this content: the SHA-256 of a large file, the git hash of a small one.
    pub(super) etag: Option<String>,
}

/// A connection to one hub.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let timeout = Some(hub.timeout);
        // Redirections are followed here: the headers of each count, and the token stays with the hub.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .user_agent(concat!("lowrank/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { hub, agent }
    }

    /// Reads a JSON document.
    pub(super) fn json(&self, path: &str) -> Result<serde_json::Value, Failure> {
        let mut incoming = self.open(path)?;
        let mut bytes = Vec::new();
        let read = incoming
            .body
            .as_reader()
            .take(MAX_LISTING + 1)
            .read_to_end(&mut bytes);
        read.map_err(|error| self.unreachable(&error))?;
        if bytes.len() as u64 > MAX_LISTING {
            return Err(Failure::answer("the list of files is longer than 32 MiB"));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::answer(format!(
                "{} does not answer with JSON: {error}",
                self.hub.endpoint
            ))
        })
    }

    /// Asks for a file, through every redirection, up to its first byte.
    pub(super) fn open(&self, path: &str) -> Result<Incoming, Failure> {
        let endpoint = self.hub.endpoint.trim_end_matches('/');
        let mut url = format!("{endpoint}{path}");
        let (mut etag, mut length) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .agent
                .get(&url)
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = &self.hub.token
                && origin(&url) == origin(endpoint)
            {
                request =
                    request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            let response = request.call().map_err(|error| self.failed(&error))?;
            let text = |name: &str| {
                let value = response.headers().get(name)?.to_str().ok()?;
                Some(value.trim().to_owned())
            };
            let bytes = |name: &str| text(name)?.parse::<u64>().ok();
            // Of a large file the hub itself says what will come; the store that it leads to has names of its own.
            etag = etag.or_else(|| text("x-linked-etag"));
            length = length.or_else(|| bytes("x-linked-size"));
            let status = response.status();
            if status == StatusCode::OK {
                return Ok(Incoming {
                    length: length.or_else(|| bytes("content-length")),
                    etag: etag.or_else(|| text("etag")),
                    body: response.into_body(),
                });
            }
            if !status.is_redirection() {
                return Err(self.refused(&response));
            }
            let location = text("location").ok_or_else(|| {
                Failure::answer(format!(
                    "{url} answers {status} and does not say where to go"
                ))
            })?;
            url = follow(&url, &location).ok_or_else(|| {
                Failure::answer(format!(
                    "{url} leads to `{location}`, which is not followed"
                ))
            })?;
        }
        Err(Failure::answer(format!(
            "{endpoint} leads on more than {MAX_REDIRECTS} times; is it a hub?"
        )))
    }

    /// An answer that is an error.
    fn refused(&self, response: &Response<Body>) -> Failure {
        let status = response.status();
        let token = match self.hub.token {
            Some(_) => {
                "the token (HF_TOKEN, or the one that is logged in) does not open it; a gated repository must be asked for on its page"
            }
            None => "if it is private or gated, set HF_TOKEN to a token that may read it",
        };
        let advice = match status.as_u16() {
            401 | 403 => format!("check the id; {token}"),
            404 => format!("check the id, the revision and the file; {token}"),
            429 => "too many requests; wait a while".to_owned(),
            500..=599 => "the server is in trouble; try again later".to_owned(),
            _ => "that is not what a hub says; check HF_ENDPOINT".to_owned(),
        };
        Failure {
            what: format!("{} answers {status}: {advice}", self.hub.endpoint),
            // The cache may be older than a refusal, but a server in trouble says nothing about the repository.
            unreachable: status.is_server_error(),
        }
    }

    fn failed(&self, error: &ureq::Error) -> Failure {
        match error {
            ureq::Error::Io(error) => self.unreachable(error),
            ureq::Error::Timeout(_) => self.silent(),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => self.unreachable(error),
            error => Failure::answer(format!(
                "a request to {} failed: {error}",
                self.hub.endpoint
            )),
        }
    }

    fn silent(&self) -> Failure {
        let seconds = self.hub.timeout.as_secs_f64();
        Failure {
            what: format!(
                "{} does not answer within {seconds} s; {CONNECTION}",
                self.hub.endpoint
            ),
            unreachable: true,
        }
    }

    /// The connection broke, or was never made.
    pub(super) fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let timed_out = error.downcast_ref::<io::Error>().is_some_and(|error| {
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<ureq::Error>());
            error.kind() == io::ErrorKind::TimedOut
                || matches!(inner, Some(ureq::Error::Timeout(_)))
        });
        if timed_out {
            return self.silent();
        }
        Failure {
            what: format!("cannot reach {}: {error}; {CONNECTION}", self.hub.endpoint),
            unreachable: true,
        }
    }
}

const CONNECTION: &str =
    "check the connection (HTTPS_PROXY and HF_ENDPOINT are honoured), or give a folder";

/// Scheme, host and port: whom a token is for.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']);
    end.map_or(url, |end| &url[..host + end])
}

/// Where a redirection from `url` leads; never from an encrypted connection to one that is not.
fn follow(url: &str, location: &str) -> Option<String> {
    let scheme = url.split("://").next()?;
    let next = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url))
    } else {
        location.to_owned()
    };
    let secure = next.starts_with("https://");
    (secure || (next.starts_with("http://") && scheme == "http")).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_stay_encrypted_and_keep_their_host_if_they_name_none() {
        let check = |url, location, expected: Option<&str>| {
            assert_eq!(
                follow(url, location).as_deref(),
                expected,
                "{url} {location}"
            );
        };
        let hub = "https://hub.co/org/name/resolve/x/a.json?b";
        check(hub, "/api/a.json", Some("https://hub.co/api/a.json"));
        check(hub, "//cdn.co/a", Some("https://cdn.co/a"));
        check(
            hub,
            "https://cdn.co/a?sign=1",
            Some("https://cdn.co/a?sign=1"),
        );
        check(hub, "http://cdn.co/a", None);
        check(hub, "file:///etc/passwd", None);
        check(hub, "a.json", None);
        check(hub, "", None);
        check("http://[::1]:80/a", "/b", Some("http://[::1]:80/b"));
        check("http://hub.co", "/b", Some("http://hub.co/b"));
        check(
            "http://hub.co/a",
            "https://cdn.co/b",
            Some("https://cdn.co/b"),
        );
    }

    #[test]
    fn a_token_is_for_one_scheme_host_and_port() {
        for (url, expected) in [
            ("https://hub.co", "https://hub.co"),
            ("https://hub.co/a/b", "https://hub.co"),
            ("https://hub.co:8443?x", "https://hub.co:8443"),
            ("http://hub.co.evil.co/hub.co", "http://hub.co.evil.co"),
        ] {
            assert_eq!(origin(url), expected);
        }
    }
}

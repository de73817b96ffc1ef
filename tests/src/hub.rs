//! A server on this machine that answers as the hub does, and as a hub must not.

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The path, with its query.
    pub path: String,
    /// The token, without `Bearer`.
    pub token: Option<String>,
}

/// What it gets.
#[derive(Debug, Clone)]
pub enum Reply {
    /// An answer.
    Answer {
        /// The status.
        status: u16,
        /// Headers, without the length.
        headers: Vec<(&'static str, String)>,
        /// What `content-length` says; none leaves it out.
        length: Option<usize>,
        /// What is sent before the connection is closed.
        body: Vec<u8>,
    },
    /// Nothing, for as long as the server lives.
    Silence,
    /// The headers and half of the body, and then nothing.
    Stall(Vec<u8>),
}

impl Reply {
    /// An answer without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::ok(Vec::new()).with_status(status)
    }

    /// An answer with this body.
    #[must_use]
    pub fn ok(body: Vec<u8>) -> Self {
        Self::Answer {
            status: 200,
            headers: Vec::new(),
            length: Some(body.len()),
            body,
        }
    }

    /// One that leads elsewhere.
    #[must_use]
    pub fn redirect(location: impl Into<String>) -> Self {
        Self::status(302).with("location", location)
    }

    /// With a header more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    fn with_status(mut self, code: u16) -> Self {
        if let Self::Answer { status, .. } = &mut self {
            *status = code;
        }
        self
    }
}

/// The files of a repository at its only commit.
#[derive(Debug, Clone)]
pub struct Repository {
    /// `org/name`, or `datasets/org/name`.
    pub name: String,
    /// The commit's hash.
    pub commit: String,
    /// What the commit is also called.
    pub revision: String,
    /// File names with slashes, and contents. Those of weights are large: they lie in a store that the hub redirects to.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    /// One without files, at `main`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            commit: sha256(name.as_bytes())[..40].to_owned(),
            revision: "main".to_owned(),
            files: BTreeMap::new(),
        }
    }

    /// One with the files of a folder.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn of_folder(name: &str, folder: &Path) -> Self {
        let mut repository = Self::new(name);
        for entry in fs::read_dir(folder).expect("a folder is listed") {
            let path = entry.expect("a folder is listed").path();
            let file = path.file_name().expect("an entry has a name");
            let contents = fs::read(&path).expect("a file is read");
            repository
                .files
                .insert(file.display().to_string(), contents);
        }
        repository
    }

    /// With a file more, or another in its place.
    #[must_use]
    pub fn with(mut self, file: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.insert(file.to_owned(), contents.into());
        self
    }

    /// What a hub that has only this repository says.
    #[must_use]
    pub fn reply(&self, request: &Request) -> Reply {
        let path = request.path.as_str();
        let api = match self.name.split_once('/') {
            Some(("datasets", _)) => format!("/api/{}/revision/", self.name),
            _ => format!("/api/models/{}/revision/", self.name),
        };
        if let Some(revision) = path.strip_prefix(&api) {
            if !self.has(revision) {
                return Reply::status(404).with("x-error-code", "RevisionNotFound");
            }
            let files = self.files.keys().map(|file| json!({"rfilename": file}));
            let files: Vec<_> = files.collect();
            let answer = json!({"id": self.name, "sha": self.commit, "siblings": files});
            return Reply::ok(answer.to_string().into_bytes());
        }
        if let Some(contents) = path.strip_prefix("/store/").and_then(|digest| {
            self.files
                .values()
                .find(|contents| sha256(contents) == digest)
        }) {
            return Reply::ok(contents.clone()).with("etag", "\"of the store\"");
        }
        let Some((revision, file)) = path
            .strip_prefix(&format!("/{}/resolve/", self.name))
            .and_then(|rest| rest.split_once('/'))
            .filter(|(revision, _)| self.has(revision))
        else {
            return Reply::status(404).with("x-error-code", "RepoNotFound");
        };
        debug_assert!(!revision.is_empty());
        let Some(contents) = self.files.get(file) else {
            return Reply::status(404).with("x-error-code", "EntryNotFound");
        };
        let digest = sha256(contents);
        let reply = if file.ends_with(".safetensors") {
            Reply::redirect(format!("/store/{digest}"))
                .with("x-linked-etag", format!("\"{digest}\""))
                .with("x-linked-size", contents.len().to_string())
        } else {
            Reply::ok(contents.clone()).with("etag", format!("\"{}\"", git_hash(contents)))
        };
        reply.with("x-repo-commit", self.commit.as_str())
    }

    fn has(&self, revision: &str) -> bool {
        [&self.commit, &self.revision].contains(&&revision.replace("%2F", "/"))
    }
}

/// A hash in hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name that git gives to these contents.
#[must_use]
pub fn git_hash(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&Sha1::digest([header.as_bytes(), bytes].concat()))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

type Log = Arc<Mutex<Vec<Request>>>;

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct HubServer {
    address: SocketAddr,
    log: Log,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HubServer {
    /// Starts a hub with these repositories.
    #[must_use]
    pub fn with(repositories: Vec<Repository>) -> Self {
        Self::start(move |request| {
            let replies = repositories
                .iter()
                .map(|repository| repository.reply(request));
            let found = |reply: &Reply| !matches!(reply, Reply::Answer { status: 404, .. });
            let mut replies: Vec<Reply> = replies.collect();
            match replies.iter().position(found) {
                Some(at) => replies.swap_remove(at),
                None => Reply::status(404),
            }
        })
    }

    /// Starts a server that answers as `reply` says.
    ///
    /// # Panics
    /// If this machine has no port left.
    #[must_use]
    pub fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (log, ends) = (Log::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (log, ends) = (Arc::clone(&log), Arc::clone(&ends));
            move || {
                // Those that are not answered stay open as long as the server.
                let mut silent = Vec::new();
                for stream in listener.incoming() {
                    if ends.load(Ordering::SeqCst) {
                        break;
                    }
                    // A client that gives up in the middle is no matter.
                    if let Ok(stream) = stream
                        && let Ok(Some(open)) = serve(stream, &reply, &log)
                    {
                        silent.push(open);
                    }
                }
            }
        });
        Self {
            address,
            log,
            ends,
            thread: Some(thread),
        }
    }

    /// What `HF_ENDPOINT` is set to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests since the last call.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The paths of the requests since the last call.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|request| request.path)
            .collect()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Wakes it up.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Answers one request; returns the connection if it must stay open.
fn serve(
    stream: TcpStream,
    reply: &impl Fn(&Request) -> Reply,
    log: &Log,
) -> io::Result<Option<TcpStream>> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut token = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            token = value.trim().strip_prefix("Bearer ").map(str::to_owned);
        }
    }
    let request = Request { path, token };
    let answer = reply(&request);
    log.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(request);
    let mut stream = stream;
    match answer {
        Reply::Silence => Ok(Some(stream)),
        Reply::Stall(body) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                body.len()
            )?;
            stream.write_all(&body[..body.len() / 2])?;
            Ok(Some(stream))
        }
        Reply::Answer {
            status,
            headers,
            length,
            body,
        } => {
            let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
            for (name, value) in headers {
                let _ = write!(head, "{name}: {value}\r\n");
            }
            if let Some(length) = length {
                let _ = write!(head, "content-length: {length}\r\n");
            }
            write!(stream, "{head}\r\n")?;
            stream.write_all(&body)?;
            stream.flush()?;
            Ok(None)
        }
    }
}

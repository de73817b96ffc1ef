//! What a hub may answer, and what it must not: each ends with an error that names what happened, and half a file is
//! never left.

use crate::{files, hub};
use lowrank::format::{Checkpoint, Hub, HubId, Network, Token};
use lowrank_tests::golden;
use lowrank_tests::hub::{HubServer, Reply, Repository, Request, git_hash, sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FILE: &str = "model.safetensors";

fn repository() -> Repository {
    Repository::of_folder("org/name", &golden::folder().join("models/biased"))
}

fn id(text: &str) -> HubId {
    text.parse().unwrap()
}

/// A server that answers as the hub does, but where `other` says something else.
fn server(other: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> HubServer {
    let repository = repository();
    HubServer::start(move |request| other(request).unwrap_or_else(|| repository.reply(request)))
}

/// Opens the model, which must fail with this message; what is left are whole files. `HUB` stands for the endpoint.
fn refused_with(server: &HubServer, change: impl FnOnce(&mut Hub), model: &str, expected: &str) {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = hub(server, cache.path());
    change(&mut hub);
    let message = hub.model(&id(model)).unwrap_err().to_string();
    let message = message.replace(&server.endpoint(), "HUB");
    let message = message.replace(&cache.path().display().to_string(), "CACHE");
    assert_eq!(message, expected);
    let whole: Vec<Vec<u8>> = repository().files.into_values().collect();
    for file in files(cache.path()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.ends_with("incomplete") && name != FILE, "{name}");
        let known = whole.contains(&std::fs::read(&file).unwrap());
        assert!(
            known || name.ends_with("index.json") || !name.contains('.'),
            "{name}"
        );
        assert!(!file.parent().unwrap().ends_with("refs"), "{name}");
    }
}

fn refused(
    other: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    model: &str,
    expected: &str,
) {
    refused_with(&server(other), |_| {}, model, expected);
}

const MAIN: &str = "model `org/name` of the hub, revision `main`";
const NO_TOKEN: &str = "if it is private or gated, set HF_TOKEN to a token that may read it";

fn is_store(request: &Request) -> bool {
    request.path.starts_with("/store/")
}

#[test]
fn answers_that_say_no() {
    let status = |code: u16| {
        move |request: &Request| {
            request
                .path
                .starts_with("/api")
                .then(|| Reply::status(code))
        }
    };
    let check = |code, expected: &str| {
        refused(
            status(code),
            "org/name",
            &format!("{MAIN}: HUB answers {expected}"),
        )
    };
    check(401, &format!("401 Unauthorized: check the id; {NO_TOKEN}"));
    check(403, &format!("403 Forbidden: check the id; {NO_TOKEN}"));
    check(
        404,
        &format!("404 Not Found: check the id, the revision and the file; {NO_TOKEN}"),
    );
    check(
        429,
        "429 Too Many Requests: too many requests; wait a while",
    );
    check(
        500,
        "500 Internal Server Error: the server is in trouble; try again later",
    );
    check(
        418,
        "418 I'm a teapot: that is not what a hub says; check HF_ENDPOINT",
    );

    // Half way, the file is named.
    refused(
        |request| is_store(request).then(|| Reply::status(503)),
        "org/name",
        &format!(
            "{MAIN}: {FILE}: HUB answers 503 Service Unavailable: the server is in trouble; try again later"
        ),
    );
    refused(
        |_| None,
        "org/name@v9",
        &format!(
            "model `org/name` of the hub, revision `v9`: HUB answers 404 Not Found: check the id, the revision and the file; {NO_TOKEN}"
        ),
    );
    refused_with(
        &server(status(403)),
        |hub| hub.token = Some(Token::new("hf_x", "HF_TOKEN").unwrap()),
        "org/name",
        &format!(
            "{MAIN}: HUB answers 403 Forbidden: check the id; the token (HF_TOKEN, or the one that is logged in) does not \
             open it; a gated repository must be asked for on its page"
        ),
    );
    refused_with(
        &server(|_| None),
        |hub| hub.network = Network::Offline,
        "org/name",
        &format!(
            "{MAIN}: is not in the cache CACHE as a whole, and HF_HUB_OFFLINE forbids to ask for it; unset that, or give a folder"
        ),
    );
}

#[test]
fn files_that_are_not_what_was_promised() {
    let contents = repository().files[FILE].clone();
    let (length, digest) = (contents.len(), sha256(&contents));
    let mut wrong = contents.clone();
    wrong[length / 2] ^= 1;
    let found = sha256(&wrong);
    refused(
        move |request| is_store(request).then(|| Reply::ok(wrong.clone())),
        "org/name",
        &format!(
            "{MAIN}: {FILE}: what came has the SHA-256 {found}, and the server promised {digest}; nothing is kept, try again"
        ),
    );
    // The connection ends early, with and without a length that says so.
    let half = contents[..length / 2].to_vec();
    let cut = half.clone();
    let server = server(move |request| {
        is_store(request).then(|| Reply::Answer {
            status: 200,
            headers: Vec::new(),
            length: Some(length),
            body: cut.clone(),
        })
    });
    let cache = tempfile::tempdir().unwrap();
    let message = hub(&server, cache.path())
        .model(&id("org/name"))
        .unwrap_err()
        .to_string();
    let expected = format!("{MAIN}: {FILE}: cannot reach {}: ", server.endpoint());
    assert!(message.starts_with(&expected), "{message}");
    let names = files(cache.path());
    assert!(
        names
            .iter()
            .all(|name| !name.ends_with(FILE) && !name.ends_with("incomplete")),
        "{names:?}"
    );
    for (body, expected) in [
        (
            half,
            format!(
                "{} bytes came, and the server promised {length}; try again",
                length / 2
            ),
        ),
        (
            [contents, vec![0; 300_000]].concat(),
            format!("more than {length} bytes come, which is not what was announced"),
        ),
    ] {
        refused(
            move |request| {
                is_store(request).then(|| Reply::Answer {
                    status: 200,
                    headers: Vec::new(),
                    length: None,
                    body: body.clone(),
                })
            },
            "org/name",
            &format!("{MAIN}: {FILE}: {expected}"),
        );
    }
}

#[test]
fn small_files_that_are_not_what_was_promised() {
    let contents = repository().files["config.json"].clone();
    let promised = git_hash(&contents);
    let mut wrong = contents.clone();
    let at = wrong.iter().position(u8::is_ascii_digit).unwrap();
    wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
    // Another number of the same length, and an answer that ends early without a length that says so.
    for body in [wrong, contents[..contents.len() / 2].to_vec()] {
        let came = git_hash(&body);
        let etag = format!("\"{promised}\"");
        refused(
            move |request| {
                request
                    .path
                    .ends_with("/config.json")
                    .then(|| Reply::Answer {
                        status: 200,
                        headers: vec![("etag", etag.clone())],
                        length: None,
                        body: body.clone(),
                    })
            },
            "org/name",
            &format!(
                "{MAIN}: config.json: what came has the git hash {came}, and the server promised {promised}; nothing is kept, try again"
            ),
        );
    }
}

#[test]
fn redirections_that_lead_nowhere() {
    refused(
        |request| {
            let next = request.path.len();
            is_store(request)
                .then(|| Reply::redirect(format!("/store/{next}x{}", request.path.len())))
        },
        "org/name",
        &format!("{MAIN}: {FILE}: HUB leads on more than 8 times; is it a hub?"),
    );
    refused(
        |request| {
            request
                .path
                .starts_with("/api")
                .then(|| Reply::redirect("file:///etc/passwd"))
        },
        "org/name",
        &format!(
            "{MAIN}: HUB/api/models/org/name/revision/main leads to `file:///etc/passwd`, which is not followed"
        ),
    );
    refused(
        |request| request.path.starts_with("/api").then(|| Reply::status(302)),
        "org/name",
        &format!(
            "{MAIN}: HUB/api/models/org/name/revision/main answers 302 Found and does not say where to go"
        ),
    );
}

#[test]
fn a_server_that_does_not_answer_is_not_waited_for() {
    let contents = repository().files[FILE].clone();
    let replies: [(&str, Reply); 2] = [
        ("/api", Reply::Silence),
        ("/store/", Reply::Stall(contents)),
    ];
    for (prefix, reply) in replies {
        let server = server(move |request| request.path.starts_with(prefix).then(|| reply.clone()));
        let started = Instant::now();
        let file = if prefix == "/api" {
            ""
        } else {
            "model.safetensors: "
        };
        refused_with(
            &server,
            |hub| hub.timeout = Duration::from_millis(400),
            "org/name",
            &format!(
                "{MAIN}: {file}HUB does not answer within 0.4 s; check the connection (HTTPS_PROXY and HF_ENDPOINT are \
                 honoured), or give a folder"
            ),
        );
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn repositories_that_lead_out_of_their_folder_or_hold_nothing_readable() {
    let with = |repository: Repository| HubServer::with(vec![repository]);
    let index = "model.safetensors.index.json";
    let bare = || {
        let mut repository = repository();
        repository.files.remove(FILE);
        repository
    };
    let check = |repository: Repository, expected: &str| {
        refused_with(
            &with(repository),
            |_| {},
            "org/name",
            &format!("{MAIN}: {expected}"),
        );
    };
    check(
        bare(),
        "holds neither model.safetensors nor model.safetensors.index.json",
    );
    check(
        bare().with("Name.Q4_K.gguf", "x"),
        "holds neither model.safetensors nor model.safetensors.index.json; download Name.Q4_K.gguf and give its path",
    );
    check(
        bare().with("pytorch_model.bin", "x"),
        "holds its weights as pickles only (pytorch_model.bin), which are refused because reading them can run any code; \
         convert them in Python and give the folder: \
         `CLASS.from_pretrained(\"org/name\").save_pretrained(\"folder\", safe_serialization=True)`, where CLASS is what \
         transformers calls the one in `architectures` of config.json",
    );
    let mut adapter = Repository::new("org/name").with("adapter_config.json", "{}");
    check(
        adapter.clone(),
        "holds no config.json; expected a model; it is an adapter: give it as `--adapter`",
    );
    adapter.commit = "../../../x".into();
    check(
        adapter,
        "its commit is given as \"../../../x\"; expected a hash",
    );
    let html = server(|request| {
        request
            .path
            .starts_with("/api")
            .then(|| Reply::ok(b"<html>".to_vec()))
    });
    refused_with(
        &html,
        |_| {},
        "org/name",
        &format!("{MAIN}: HUB does not answer with JSON: expected value at line 1 column 1"),
    );
    for shard in [
        "../../x",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "x\\y.safetensors",
        "",
    ] {
        let map = serde_json::json!({"weight_map": {"w": shard}});
        let server = with(bare().with(index, map.to_string()));
        let commit = repository().commit;
        let path = format!("CACHE/models--org--name/snapshots/{commit}/{index}");
        refused_with(
            &server,
            |_| {},
            "org/name",
            &format!("{path}: `{shard}` points outside the folder"),
        );
        assert!(
            server
                .paths()
                .iter()
                .all(|path| !path.ends_with('x') && !path.contains("passwd"))
        );
    }
}

#[test]
fn content_is_named_by_a_hash_whatever_the_server_calls_it() {
    let repository = repository();
    let contents = repository.files["config.json"].clone();
    let digest = sha256(&contents);
    let server = server(move |request| {
        let reply = Reply::ok(contents.clone()).with("etag", "\"../../../evil\"");
        request.path.ends_with("/config.json").then_some(reply)
    });
    let cache = tempfile::tempdir().unwrap();
    let folder = hub(&server, cache.path()).model(&id("org/name")).unwrap();
    let link = folder.join("config.json").read_link().unwrap();
    assert_eq!(link, std::path::Path::new("../../blobs").join(digest));
    assert!(
        files(cache.path())
            .iter()
            .all(|path| !path.ends_with("evil"))
    );
    drop(Checkpoint::open(&folder).unwrap());
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let contents = repository().files[FILE].clone();
    let store = HubServer::start(move |_| Reply::ok(contents.clone()));
    let location = format!("{}/signed?key=1", store.endpoint());
    let contents = repository().files[FILE].clone();
    let server = server(move |request| {
        let reply = Reply::redirect(location.as_str())
            .with("x-linked-etag", format!("\"{}\"", sha256(&contents)))
            .with("x-linked-size", contents.len().to_string());
        request.path.ends_with(FILE).then_some(reply)
    });
    let cache = tempfile::tempdir().unwrap();
    let mut hub = hub(&server, cache.path());
    hub.token = Some(Token::new("hf_secret", "HF_TOKEN").unwrap());
    drop(Checkpoint::open(&hub.model(&id("org/name")).unwrap()).unwrap());
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert!(
        requests
            .iter()
            .all(|request| request.token.as_deref() == Some("hf_secret"))
    );
    let requests = store.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].path.as_str(), &requests[0].token),
        ("/signed?key=1", &None)
    );
}

#[test]
fn what_was_interrupted_goes_on_where_it_stopped() {
    let broken = std::sync::Arc::new(AtomicBool::new(true));
    let state = std::sync::Arc::clone(&broken);
    let server = server(move |request| {
        (is_store(request) && state.load(Ordering::SeqCst)).then(|| Reply::status(500))
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    // Without its weights the model is not whole: neither the cache nor a connection that fails makes it so.
    for network in [Network::Online, Network::Offline, Network::Online] {
        let hub = Hub {
            network,
            ..hub.clone()
        };
        hub.model(&id("org/name")).unwrap_err();
    }
    drop(server.paths());
    broken.store(false, Ordering::SeqCst);
    drop(Checkpoint::open(&hub.model(&id("org/name")).unwrap()).unwrap());
    let paths = server.paths();
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert!(paths[1].ends_with(FILE));
    assert!(paths[2].starts_with("/store/"));
}

#[test]
fn the_same_content_is_kept_once() {
    let server = HubServer::with(vec![
        repository(),
        Repository {
            revision: "v2".into(),
            commit: "a".repeat(40),
            ..repository()
        },
    ]);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let first = hub.model(&id("org/name")).unwrap();
    let blobs = files(&cache.path().join("models--org--name/blobs"));
    let second = hub.model(&id("org/name@v2")).unwrap();
    assert_ne!(first, second);
    assert_eq!(files(&cache.path().join("models--org--name/blobs")), blobs);
    drop(Checkpoint::open(&second).unwrap());
}

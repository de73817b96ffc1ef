//! What names no repository, and settings that make no sense: nothing is asked, and nothing is written.

use lowrank_tests::hub::{HubServer, Reply};
use lowrank_tests::place::Place;

fn refused(arguments: &[&str], variables: &[(&str, &str)], code: i32, expected: &str) {
    let place = Place::with_model("biased");
    let server = HubServer::start(|_| Reply::status(500));
    let endpoint = server.endpoint();
    let variables = [&[("HF_ENDPOINT", endpoint.as_str())], variables].concat();
    let before = place.entries();
    let ended = place.run_with(arguments, &variables);
    assert_eq!(ended.code, code, "{}", ended.stderr);
    assert_eq!(ended.stderr, format!("error: {expected}\n"));
    assert_eq!(ended.stdout, "");
    assert_eq!(place.entries(), before);
    assert_eq!(server.paths(), [""; 0]);
}

#[test]
fn words_that_are_neither_a_path_nor_an_id() {
    let model = |text: &str, expected: &str| {
        refused(
            &["eval", "--model", text, "--data", "rows.jsonl"],
            &[],
            1,
            expected,
        );
    };
    let neither = "does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`";
    for text in ["none", "a/b/c", "../none", "./none", "/none", "none@main"] {
        model(text, &format!("{text} {neither}"));
    }
    let signs = "expected letters, digits, `-`, `_`, `.`";
    model(
        "or g/name",
        &format!("`or g/name` is not a hub id: the organisation `or g` holds ' '; {signs}"),
    );
    model(
        "org/n%61me",
        &format!("`org/n%61me` is not a hub id: the name `n%61me` holds '%'; {signs}"),
    );
    model(
        "org/a..b",
        "`org/a..b` is not a hub id: the name `a..b` holds `..`",
    );
    model("org/", "`org/` is not a hub id: the name is empty");
    model(
        "org/name@",
        "`org/name@` is not a hub id: nothing follows the `@`; expected a branch, a tag or a commit",
    );
    model(
        "org/name@../../x",
        "`org/name@../../x` is not a hub id: a part of the revision `../../x` begins with `-` or `.`",
    );
    let long = "n".repeat(200);
    let shown = "n".repeat(116);
    model(
        &format!("org/{long}"),
        &format!(
            "`org/{shown}..` is not a hub id: the name `nnnn{shown}..` has 200 characters; the hub allows 96"
        ),
    );
    model(
        "model@main",
        "model: is on this machine, where nothing has revisions; leave `@main` out",
    );
    refused(
        &[
            "eval",
            "--model",
            "model",
            "--adapter",
            "a/b/c",
            "--data",
            "rows.jsonl",
        ],
        &[],
        1,
        &format!("a/b/c {neither}"),
    );
    let data = |text: &str, code, expected: &str| {
        refused(
            &["eval", "--model", "model", "--data", text],
            &[],
            code,
            expected,
        );
    };
    data(
        "hub:org/rows.jsonl",
        2,
        "`hub:org/rows.jsonl` names no file of a data set; expected `hub:org/name/file` or `hub:org/name@revision/file`",
    );
    data(
        "hub:../name/rows.jsonl",
        2,
        "`../name` is not a hub id: the organisation `..` begins or ends with `-` or `.` (in `hub:../name/rows.jsonl`)",
    );
    let inside = "expected the path of a file in the repository, without empty parts, parts that begin with a dot, \
                  backslashes and control characters";
    for file in [
        "../rows.jsonl",
        "a/../../rows.jsonl",
        "/rows.jsonl",
        "a//b",
        ".git/config",
        "a\\b",
        "",
    ] {
        data(
            &format!("hub:org/name/{file}"),
            1,
            &format!("`org/name/{file}` is not a hub id: {inside}"),
        );
    }
    data(
        "hub:org/name/rows.zip",
        1,
        "data source `hub:org/name/rows.zip`: compressed files are not yet supported: unpack the file",
    );
}

#[test]
fn settings_that_make_no_sense() {
    let arguments = ["eval", "--model", "org/name", "--data", "rows.jsonl"];
    let here = "(nothing here is called `org/name`)";
    for (name, value, expected) in [
        (
            "HF_ENDPOINT",
            "hub.co",
            "HF_ENDPOINT is `hub.co`; expected an address such as https://huggingface.co",
        ),
        (
            "HF_ENDPOINT",
            "ftp://hub.co",
            "HF_ENDPOINT is `ftp://hub.co`; expected an address such as https://huggingface.co",
        ),
        (
            "HF_TOKEN",
            "hf_a b",
            "HF_TOKEN is not a token: expected letters and digits",
        ),
        (
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "soon",
            "HF_HUB_DOWNLOAD_TIMEOUT is `soon`; expected seconds",
        ),
        (
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "-1",
            "HF_HUB_DOWNLOAD_TIMEOUT is `-1`; expected seconds",
        ),
    ] {
        refused(
            &arguments,
            &[(name, value)],
            1,
            &format!("{expected} {here}"),
        );
    }
}

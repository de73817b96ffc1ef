//! Tokenised rows that are kept are the rows, whatever happens to the files that keep them.

use crate::helpers::{Folder, TOKENIZER, count, examples, options, tokenizer};
use lowrank_data::{Cache, ChatDate, ChatTemplate, Dataset, Expected, Options, Tokenizer};
use lowrank_ops::rng::{Key, Purpose};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const FILES: [(&str, &[u8]); 3] = [
    (
        "text.jsonl",
        b"{\"text\": \"the cat sat on the mat\"}\n\n{\"text\": \"a cat\"}\n{\"text\": \"the mat sat on a cat on a mat\"}\n",
    ),
    (
        "choices.jsonl",
        b"{\"prompt\": \"the cat\", \"completion\": \"sat on\", \"choices\": [\"sat\", \"on a mat\"], \"answer\": 0}\n\
          {\"prompt\": \"a\", \"completion\": \"mat\", \"choices\": [\"mat\", \"cat sat on a\"]}\n",
    ),
    (
        "tokens.jsonl",
        b"{\"input_ids\": [9, 10, 11], \"labels\": [9, -100, 0]}\n{\"input_ids\": [5, 6], \"labels\": [-100, 6]}\n",
    ),
];

const NAMES: [&str; 3] = ["text.jsonl", "choices.jsonl", "tokens.jsonl"];

struct Scene {
    folder: Folder,
    cache: Cache,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new(&FILES);
        let cache = Cache {
            folder: folder.path("kept").join("rows"),
            at_least: 0,
            required: true,
        };
        Self { folder, cache }
    }

    fn patterns(&self, names: &[&str]) -> Vec<String> {
        let names = names.iter();
        names
            .map(|name| self.folder.path(name).to_str().unwrap().to_owned())
            .collect()
    }

    fn with(
        &self,
        names: &[&str],
        tokenizer: &Tokenizer,
        options: &Options,
    ) -> lowrank_data::Result<Dataset> {
        Dataset::open_cached(
            &self.patterns(names),
            Some(tokenizer),
            options,
            Expected::Found(None),
            &self.cache,
        )
    }

    fn open(&self) -> Dataset {
        let data = self.with(&NAMES, &tokenizer(), &options()).unwrap();
        data.with_references().unwrap()
    }

    fn kept(&self) -> Vec<PathBuf> {
        let Ok(entries) = self.cache.folder.read_dir() else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

fn check_same(cached: &Dataset, memory: &Dataset) {
    assert!(cached.is_cached() && !memory.is_cached());
    assert_eq!(examples(cached), examples(memory));
    assert_eq!(cached.references(), memory.references());
    assert_eq!(cached.summary(), memory.summary());
    assert_eq!(
        (cached.longest(), cached.kind()),
        (memory.longest(), memory.kind())
    );
    let (cached, memory) = (cached.examples(), memory.examples());
    for row in 0..memory.len() {
        assert_eq!(
            (cached.tokens(row), cached.supervised(row)),
            (memory.tokens(row), memory.supervised(row))
        );
    }
}

#[test]
fn rows_that_are_kept_are_the_rows() {
    let scene = Scene::new();
    for max_length in [64, 4] {
        let options = Options {
            max_length: count(max_length),
            ..options()
        };
        let memory = scene
            .folder
            .open(&NAMES, Some(&tokenizer()), &options)
            .unwrap();
        // Made, and then found.
        for _ in 0..2 {
            let cached = scene.with(&NAMES, &tokenizer(), &options).unwrap();
            assert!(cached.references().is_empty());
            check_same(&cached.with_references().unwrap(), &memory);
        }
        let cached = scene.with(&NAMES, &tokenizer(), &options).unwrap();
        let (train, held_out) = cached.split(0.4, 3).unwrap();
        let (expected, expected_out) = memory.split(0.4, 3).unwrap();
        check_same(&train.with_references().unwrap(), &expected);
        check_same(&held_out, &expected_out);
    }
    // Of rows that nothing is asked of, there are no references.
    let plain = scene
        .with(&["text.jsonl"], &tokenizer(), &options())
        .unwrap();
    assert!(plain.with_references().unwrap().references().is_empty());
}

#[test]
fn a_file_is_tokenised_once_for_what_it_holds_and_how() {
    let scene = Scene::new();
    scene.open();
    let kept = scene.kept();
    assert_eq!(kept.len(), 3);
    let times = |paths: &[PathBuf]| -> Vec<_> {
        paths
            .iter()
            .map(|path| fs::metadata(path).unwrap().modified().unwrap())
            .collect()
    };
    let before = times(&kept);
    scene.open();
    // Another name and another time, but the same bytes.
    fs::copy(
        scene.folder.path("text.jsonl"),
        scene.folder.path("copy.jsonl"),
    )
    .unwrap();
    scene
        .with(&["copy.jsonl"], &tokenizer(), &options())
        .unwrap();
    assert_eq!((scene.kept(), times(&kept)), (kept.clone(), before));

    let more = |names: &[&str], tokenizer: &Tokenizer, options: &Options| {
        let before = scene.kept().len();
        let data = scene.with(names, tokenizer, options).unwrap();
        assert_eq!(scene.kept().len(), before + 1);
        examples(&data)
    };
    let text = ["text.jsonl"];
    let end = Options {
        end_token: None,
        ..options()
    };
    assert_eq!(more(&text, &tokenizer(), &end)[1].ids, [1, 7, 4]);
    let vocab = Options {
        vocab: 20,
        ..options()
    };
    more(&text, &tokenizer(), &vocab);
    let swapped = TOKENIZER
        .replace("\"cat\": 4", "\"cat\": 5")
        .replace("\"sat\": 5", "\"sat\": 4");
    let swapped = Tokenizer::from_bytes(swapped.as_bytes(), "swapped").unwrap();
    assert_eq!(more(&text, &swapped, &options())[1].ids, [1, 7, 5, 2]);
    fs::write(scene.folder.path("text.jsonl"), "{\"text\": \"on\"}\n").unwrap();
    assert_eq!(more(&text, &tokenizer(), &options())[0].ids, [1, 6, 2]);
    // The end of a name says how a file is read.
    fs::copy(
        scene.folder.path("text.jsonl"),
        scene.folder.path("text.ndjson"),
    )
    .unwrap();
    more(&["text.ndjson"], &tokenizer(), &options());
}

/// Rows that were damaged or exchanged are made again, and nothing of what was there is used.
#[test]
fn damaged_files_are_made_again() {
    let scene = Scene::new();
    let memory = scene
        .folder
        .open(&NAMES, Some(&tokenizer()), &options())
        .unwrap();
    scene.open();
    let kept = scene.kept();
    let whole: Vec<Vec<u8>> = kept.iter().map(|path| fs::read(path).unwrap()).collect();
    let check = |path: &Path, bytes: &[u8], what: &str| {
        fs::write(path, bytes).unwrap();
        let found = scene.open();
        assert_eq!(examples(&found), examples(&memory), "{what}");
        assert_eq!(found.summary(), memory.summary(), "{what}");
        let place = kept.iter().position(|other| other == path).unwrap();
        assert!(fs::read(path).unwrap() == whole[place], "{what}");
        assert_eq!(scene.kept(), kept, "{what}");
    };
    let mut random = Key::new(4, Purpose::Test).stream();
    for (path, bytes) in kept.iter().zip(&whole) {
        for length in [0, 1, 7, 8, 39, 40, 95, bytes.len() - 33, bytes.len() - 1] {
            check(path, &bytes[..length], &format!("cut to {length}"));
        }
        check(path, &[bytes.as_slice(), b"\0"].concat(), "one more");
        check(path, b"not rows at all, but long enough to have a header and a footer, if it had them: no, it has none", "text");
        for _ in 0..40 {
            let at = random.below(bytes.len() as u64) as usize;
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << random.below(8);
            check(path, &wrong, &format!("byte {at}"));
        }
    }
    // What is whole, but of another file.
    check(&kept[0], &whole[1], "exchanged");
}

#[test]
fn what_changes_while_it_is_used_is_an_error() {
    let scene = Scene::new();
    let data = scene
        .with(&["tokens.jsonl"], &tokenizer(), &options())
        .unwrap();
    let path = &scene.kept()[0];
    // The same file, and not another of its name.
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(60).unwrap();
    let error = data.examples().get(1).unwrap_err().to_string();
    assert!(error.starts_with("cannot read `"), "{error}");
    file.set_len(0).unwrap();
    file.set_len(4096).unwrap();
    let error = data.examples().get(0).unwrap_err().to_string();
    assert!(error.contains("were changed by somebody else"), "{error}");
}

#[test]
fn nothing_is_left_of_rows_that_are_refused() {
    let scene = Scene::new();
    fs::write(
        scene.folder.path("bad.jsonl"),
        "{\"text\": \"a\"}\n{\"txt\": \"a\"}\n",
    )
    .unwrap();
    fs::write(scene.folder.path("none.jsonl"), "\n").unwrap();
    for name in ["bad.jsonl", "none.jsonl"] {
        let plain = scene
            .folder
            .open(&[name], Some(&tokenizer()), &options())
            .unwrap_err();
        let error = scene.with(&[name], &tokenizer(), &options()).unwrap_err();
        assert_eq!(error.to_string(), plain.to_string());
    }
    assert_eq!(scene.kept(), Vec::<PathBuf>::new());
}

#[test]
fn small_files_and_the_first_rows_are_read_into_memory() {
    let mut scene = Scene::new();
    let limited = Options {
        limit: Some(count(2)),
        ..options()
    };
    assert!(
        !scene
            .with(&NAMES, &tokenizer(), &limited)
            .unwrap()
            .is_cached()
    );
    let bytes: usize = FILES.iter().map(|(_, content)| content.len()).sum();
    scene.cache.at_least = bytes as u64 + 1;
    assert!(!scene.open().is_cached());
    assert_eq!(scene.kept(), Vec::<PathBuf>::new());
    scene.cache.at_least = bytes as u64;
    assert!(scene.open().is_cached());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_an_error_or_leaves_rows_in_memory() {
    let mut scene = Scene::new();
    // No folder can be made in a file.
    scene.cache.folder = scene.folder.path("text.jsonl").join("rows");
    let error = scene
        .with(&NAMES, &tokenizer(), &options())
        .unwrap_err()
        .to_string();
    let expected = format!(
        "cannot keep tokenised rows in `{}/",
        scene.cache.folder.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("`data.cache = false`"), "{error}");
    scene.cache.required = false;
    assert!(!scene.open().is_cached());
}

#[test]
fn what_killed_writers_left_is_removed() {
    let scene = Scene::new();
    fs::create_dir_all(&scene.cache.folder).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let make = |name: &str, modified: SystemTime| {
        let file = fs::File::create(scene.cache.folder.join(name)).unwrap();
        file.set_modified(modified).unwrap();
        file
    };
    make(".rows-killed", long_ago);
    make(".rows-begun", SystemTime::now());
    make("rows-of-somebody", long_ago);
    let written = make(".rows-written", long_ago);
    written.lock().unwrap();
    scene.open();
    let kept = scene.kept();
    let names = kept
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap());
    let names: Vec<&str> = names.filter(|name| !name.ends_with(".rows")).collect();
    assert_eq!(names, [".rows-begun", ".rows-written", "rows-of-somebody"]);
}

#[cfg(unix)]
#[test]
fn rows_from_a_pipe_are_read_once_and_not_kept() {
    let scene = Scene::new();
    let pipe = scene.folder.path("pipe.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("not run: there is no mkfifo");
        return;
    }
    let path = pipe.clone();
    let writer = std::thread::spawn(move || fs::write(path, FILES[0].1));
    let data = scene
        .with(&["pipe.jsonl"], &tokenizer(), &options())
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(!data.is_cached());
    assert_eq!(data.rows(), count(3));
    assert_eq!(scene.kept(), Vec::<PathBuf>::new());
}

#[test]
fn a_template_that_tells_the_date_makes_rows_of_that_day_anew() {
    let chat = b"{\"messages\": [{\"role\": \"user\", \"content\": \"the cat\"}, {\"role\": \"assistant\", \"content\": \"sat\"}]}\n";
    let scene = Scene {
        folder: Folder::new(&[("chat.jsonl", chat)]),
        ..Scene::new()
    };
    let plain = "{% for m in messages %}<s> {{ m.content }} </s> {% endfor %}";
    let open = |source: &str, date: &str| {
        let config = serde_json::json!({"chat_template": source});
        let template = ChatTemplate::from_config(config.as_object().unwrap(), "the test").unwrap();
        let template = template.dated(date.parse::<ChatDate>().unwrap());
        let tokenizer = tokenizer().with_chat_template(Ok(template));
        let data = scene.with(&["chat.jsonl"], &tokenizer, &options()).unwrap();
        let ids = examples(&data)[0].ids.clone();
        (ids, scene.kept().len())
    };
    let (first, files) = open(plain, "2026-11-23");
    assert_eq!(files, 1);
    assert_eq!(open(plain, "2026-11-24"), (first.clone(), 1));
    let told = format!("{{{{ 'cat ' if strftime_now('%d') == '23' else 'mat ' }}}}{plain}");
    let (today, files) = open(&told, "2026-11-23");
    assert_eq!((today.len(), files), (first.len() + 1, 2));
    let (tomorrow, files) = open(&told, "2026-11-24");
    assert_eq!(files, 3);
    assert_ne!(tomorrow[0], today[0]);
    assert_eq!(tomorrow[1..], today[1..]);
    assert_eq!(open(&told, "2026-11-23"), (today, 3));
}

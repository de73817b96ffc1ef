//! Text that comes a token at a time, against the text of all tokens at once.

use crate::helpers::tokenizer;
use lowrank_data::{Error, Special, StopStrings, TextStream, Tokenizer};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

/// Tokens of several bytes, after one token for every byte: words, and pieces that cut characters in two.
const PIECES: [&[u8]; 8] = [
    b" the",
    b"STOP",
    b"\n\n",
    "é".as_bytes(),
    b"\xF0\x9F",
    b"\x98\x80 a",
    b"\xE2\x82",
    b"\xACx\xC3",
];

/// The id of a special token.
const END: u32 = 264;

fn token(bytes: &[u8]) -> String {
    // GPT-2's letters for bytes: the printable ones stand for themselves, the others for letters from U+0100 on.
    let plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let letter = |byte: u8| {
        let others = (0..byte).filter(|&other| !plain(other)).count();
        let letter = if plain(byte) {
            u32::from(byte)
        } else {
            256 + others as u32
        };
        char::from_u32(letter).unwrap()
    };
    bytes.iter().map(|&byte| letter(byte)).collect()
}

fn open(json: Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json").unwrap()
}

fn special(id: u32) -> Value {
    json!([{"id": id, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}])
}

fn bytes_tokenizer() -> Tokenizer {
    let single = (0..=255u8).map(|byte| token(&[byte]));
    let tokens = single.chain(PIECES.map(token));
    let vocab: Map<String, Value> = tokens
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    open(
        json!({"version": "1.0", "added_tokens": special(END), "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}}),
    )
}

/// As LLaMA's first tokenizers: words begin with a mark that is a space but for the first, and bytes stand for the rest.
fn marks_tokenizer() -> Tokenizer {
    let words = ["▁the", "▁", "cat", "▁sat", "s", "."].map(str::to_owned);
    let tokens = words
        .into_iter()
        .chain((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let vocab: Map<String, Value> = tokens
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    open(
        json!({"version": "1.0", "added_tokens": special(262), "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true}}),
    )
}

fn stops(stops: &[&str]) -> StopStrings {
    StopStrings::new(stops.iter().map(|&stop| stop.to_owned())).unwrap()
}

/// The pieces as they come, and the last.
fn pieces(tokenizer: &Tokenizer, stops: &StopStrings, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = TextStream::new(tokenizer, stops);
    let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pieces, stream.finish().unwrap())
}

#[test]
fn characters_come_whole() {
    let tokenizer = bytes_tokenizer();
    let check = |ids: &[u32], expected: &[&str], last: &str| {
        assert_eq!(
            pieces(&tokenizer, &StopStrings::default(), ids),
            (
                expected.iter().map(|&piece| piece.to_owned()).collect(),
                last.to_owned()
            )
        );
    };
    // A smiley over two tokens, the second of which goes on.
    check(&[256, 260, 261, 256], &[" the", "", "😀 a", " the"], "");
    // A euro sign, then half of an é, whose rest is a byte of its own.
    check(&[262, 263, 0xA9], &["", "", "€xé"], "");
    // A character that never ends, at the end and in the middle.
    check(&[65, 260], &["A", ""], "\u{FFFD}");
    check(&[260, 65, 66], &["", "\u{FFFD}A", "B"], "");
    // Special tokens are left out.
    check(&[END, 65, END, 256], &["", "A", "", " the"], "");
    check(&[], &[], "");
}

#[test]
fn spaces_between_words_are_kept() {
    let (words, none) = (tokenizer(), StopStrings::default());
    assert_eq!(
        pieces(&words, &none, &[3, 4, 2, 5, 11]).0,
        ["the", " cat", "", " sat", " été"]
    );
    // The mark of the first word is no space; that of a later one is, though it stands first among what is new.
    let marks = marks_tokenizer();
    let smiley = [0xF0, 0x9F, 0x98, 0x80].map(|byte| byte + 6);
    let ids = [&[0, 3, 4][..], &smiley, &[262, 0]].concat();
    assert_eq!(
        pieces(&marks, &none, &ids).0,
        ["the", " sat", "s", "", "", "", "😀", "", " the"]
    );
}

#[test]
fn stop_strings_end_the_text_and_never_show() {
    let tokenizer = bytes_tokenizer();
    let check = |stop: &[&str], text: &str, expected: &[&str], last: &str| {
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let found = pieces(&tokenizer, &stops(stop), &ids);
        let filled: Vec<String> = found
            .0
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .collect();
        assert_eq!(
            (
                filled.iter().map(String::as_str).collect(),
                found.1.as_str()
            ),
            (expected.to_vec(), last),
            "{stop:?} in {text}"
        );
    };
    check(&["cd"], "abcde", &["a", "b"], "");
    // What may begin a stop string waits, and comes when it does not.
    check(&["cd"], "abcxc", &["a", "b", "cx"], "c");
    check(&["aab"], "aaab", &["a"], "");
    check(&["\n\n"], "a\nb\n\nc", &["a", "\nb"], "");
    check(&["ée"], "éxée!", &["éx"], "");
    // The first to be complete counts; of two that are complete at once, the longer.
    check(&["abcd", "c"], "xabcd", &["x", "ab"], "");
    check(&["cd", "bcd"], "abcd", &["a"], "");
    // In one token, and at the very beginning.
    let (pieces_of, last) = pieces(&tokenizer, &stops(&["TO"]), &[65, 257, 66]);
    assert_eq!((pieces_of.concat(), last), ("AS".to_owned(), String::new()));
    check(&["a"], "abc", &[], "");

    let stop = stops(&["B"]);
    let mut stream = TextStream::new(&tokenizer, &stop);
    assert_eq!(stream.push(65).unwrap(), "A");
    assert!(!stream.stopped());
    assert_eq!(stream.push(66).unwrap(), "");
    assert!(stream.stopped());
    assert_eq!(stream.push(65).unwrap(), "");
    assert!(matches!(
        StopStrings::new(["a".to_owned(), String::new()]),
        Err(Error::EmptyStop)
    ));
}

#[test]
fn special_tokens_are_known_by_their_text() {
    let tokenizer = bytes_tokenizer();
    assert_eq!(tokenizer.special_token("<end>"), Some(END));
    assert_eq!(tokenizer.special_token("A"), None);
    assert_eq!(tokenizer.special_token("<none>"), None);
}

fn check(tokenizer: &Tokenizer, stops: &StopStrings, ids: &[u32]) -> Result<(), TestCaseError> {
    let whole = tokenizer.decode(ids, Special::Omit).unwrap();
    let end = stops.find(&whole);
    let (pieces, last) = pieces(tokenizer, stops, ids);
    prop_assert_eq!(
        pieces.concat() + &last,
        &whole[..end.unwrap_or(whole.len())]
    );
    Ok(())
}

/// Stop strings out of few letters, so that they are found, and overlap.
fn some_stops() -> impl Strategy<Value = StopStrings> {
    let stop = prop::collection::vec(
        select(vec!["a", "A", " ", "the", "é", "😀", "S", "\u{FFFD}"]),
        1..4,
    );
    let stops = prop::collection::vec(stop.prop_map(|parts| parts.concat()), 0..4);
    stops.prop_map(|stops| StopStrings::new(stops).unwrap())
}

proptest! {
    #[test]
    fn all_pieces_are_the_text_up_to_the_stop(
        ids in prop::collection::vec(prop_oneof![256..=END, 97..99u32, Just(65), Just(32), 0..256u32], 0..40),
        stops in some_stops(),
    ) {
        check(&bytes_tokenizer(), &stops, &ids)?;
    }

    #[test]
    fn all_pieces_are_the_text_of_words_and_whole_characters(
        parts in prop::collection::vec(
            prop_oneof![
                (0..6u32).prop_map(|id| vec![id]),
                Just(vec![262]),
                select(vec!["é", "€", "😀"]).prop_map(|text| text.bytes().map(|byte| u32::from(byte) + 6).collect()),
            ],
            0..20,
        ),
        stops in some_stops(),
    ) {
        check(&marks_tokenizer(), &stops, &parts.concat())?;
    }
}

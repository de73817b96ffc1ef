//! The tokenizer on its own.

use crate::helpers::{Folder, TOKENIZER, tokenizer};
use lowrank_data::{Error, Special, Tokenizer};

#[test]
fn a_files_own_truncation_and_padding_are_off() {
    let tokenizer = tokenizer();
    assert_eq!(
        tokenizer
            .encode("the cat sat on a mat", Special::Add)
            .unwrap(),
        [1, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(tokenizer.encode("the dog", Special::Omit).unwrap(), [3, 0]);
    assert_eq!(tokenizer.encode("", Special::Omit).unwrap(), [0u32; 0]);
}

#[test]
fn the_vocabulary_is_as_large_as_its_largest_token() {
    // Two entries below 11 are not there.
    assert_eq!(tokenizer().vocab_size(), 12);
}

#[test]
fn tokens_become_text() {
    let tokenizer = tokenizer();
    assert_eq!(
        tokenizer.decode(&[1, 3, 4, 2], Special::Omit).unwrap(),
        "the cat"
    );
    assert_eq!(
        tokenizer.decode(&[1, 3, 4, 2], Special::Add).unwrap(),
        "<s> the cat </s>"
    );
    assert_eq!(tokenizer.decode(&[999], Special::Add).unwrap(), "");
    assert_eq!(
        tokenizer.decode_tokens(&[1, 3, 4, 2]).unwrap(),
        ["<s>", " the", " cat", " </s>"]
    );
    assert_eq!(tokenizer.decode_tokens(&[]).unwrap(), [""; 0]);
}

fn refused(content: &str) -> String {
    let folder = Folder::new(&[("tokenizer.json", content.as_bytes())]);
    folder.message(&Tokenizer::from_file(folder.path("tokenizer.json")).unwrap_err())
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    assert_eq!(
        refused("{\"model\":"),
        "tokenizer `tokenizer.json`: not a tokenizer file: EOF while parsing a value at line 1 column 9"
    );
    assert!(refused("[]").starts_with("tokenizer `tokenizer.json`: not a tokenizer file: "));
}

#[test]
fn a_template_with_an_undefined_token_is_refused() {
    let content = TOKENIZER.replace(r#""<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}"#, "");
    assert_eq!(
        refused(&content),
        "tokenizer `tokenizer.json`: the tokenizer failed: the file contradicts itself, \
         for example a special token that is not defined"
    );
}

#[test]
fn random_tokens_are_refused() {
    let content = r#"{"model": {"type": "BPE", "dropout": 0.25, "vocab": {"a": 0}, "merges": []}}"#;
    assert_eq!(
        refused(content),
        "tokenizer `tokenizer.json`: `model.dropout` is 0.25: tokens drawn at random are not supported, set it to null"
    );
    assert!(
        refused(&content.replace("0.25", "null").replace("BPE", "Nothing"))
            .contains("not a tokenizer file")
    );
}

#[test]
fn a_folder_is_told_what_it_lacks() {
    let folder = Folder::new(&[("tokenizer.json", TOKENIZER.as_bytes())]);
    assert_eq!(
        Tokenizer::from_folder(folder.path(""))
            .unwrap()
            .vocab_size(),
        12
    );

    let folder = Folder::new(&[("tokenizer.model", b"x"), ("vocab.json", b"{}")]);
    let error = Tokenizer::from_folder(folder.path("")).unwrap_err();
    assert!(matches!(&error, Error::NoTokenizer { found, .. } if found.len() == 2));
    assert_eq!(
        folder.message(&error),
        "tokenizer `tokenizer.json` does not exist, and tokenizer.model, vocab.json alone cannot be read: write a fast \
         tokenizer there (in Python: AutoTokenizer.from_pretrained(folder).save_pretrained(folder))"
    );

    let error = Tokenizer::from_folder(folder.path("nowhere")).unwrap_err();
    assert_eq!(
        folder.message(&error),
        "tokenizer `nowhere/tokenizer.json` does not exist"
    );
    let error = Tokenizer::from_file(folder.path("t.json")).unwrap_err();
    assert_eq!(
        folder.message(&error),
        "cannot read `".to_owned() + "t.json`: No such file or directory (os error 2)"
    );
}

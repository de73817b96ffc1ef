//! GGUF files that are cut, lie, or hold what is not known, as the binary meets them.

use crate::small_gguf;
use lowrank_tests::place::Place;
use std::time::{Duration, Instant};

const EVAL: [&str; 5] = ["eval", "--model", "bad.gguf", "--data", "rows.jsonl"];

/// Where `text` begins.
fn find(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .position(|part| part == text.as_bytes());
    found.unwrap_or_else(|| panic!("no {text}"))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Where the dimensions of a tensor of two stand; type and offset follow.
fn dims(bytes: &[u8], name: &str) -> usize {
    find(bytes, name) + name.len() + 4
}

#[test]
fn files_that_are_cut_or_lie() {
    let place = Place::new();
    small_gguf::write(&place);
    let whole = place.read("model.gguf");
    let length = whole.len();
    // Building the binary is not what is timed below.
    drop(place.run(&["inspect", "model.gguf"]).ok());
    let check = |edit: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = whole.clone();
        edit(&mut bytes);
        place.write("bad.gguf", bytes);
        let started = Instant::now();
        let expected = format!("error: bad.gguf: not a valid GGUF file: {expected}");
        place.refuses(&EVAL, 1, &[&expected]);
        assert!(started.elapsed() < Duration::from_secs(60), "{expected}");
    };
    check(&|bytes| bytes.truncate(0), "it is empty");
    check(
        &|bytes| bytes.truncate(20),
        "the number of metadata entries should take 8 bytes, and only 4 follow: is it truncated?",
    );
    check(
        &|bytes| bytes.truncate(40),
        "it claims 17 metadata entries, and only 16 bytes follow: is it truncated?",
    );
    check(
        &|bytes| bytes.truncate(find(bytes, "Ġg")),
        "metadata `tokenizer.ggml.tokens`",
    );
    check(
        &|bytes| bytes.truncate(find(bytes, "blk.1.ffn_up") + 5),
        "the name of tensor 18 should take 19 bytes, and only 5 follow: is it truncated?",
    );
    check(
        &|bytes| bytes.truncate(length / 2),
        "tensor `blk.0.ffn_down.weight` of the dimensions [96, 64] does not end inside the data, which is",
    );
    check(
        &|bytes| put(bytes, 4, &9u32.to_le_bytes()),
        "its version is 9, and versions 2 and 3 are read",
    );
    check(
        &|bytes| put(bytes, 8, &(1u64 << 40).to_le_bytes()),
        "it claims 1099511627776 tensors, and only",
    );
    check(
        &|bytes| put(bytes, 16, &(1u64 << 40).to_le_bytes()),
        "it claims 1099511627776 metadata entries, and only",
    );
    check(
        &|bytes| put(bytes, 24, &(1u64 << 42).to_le_bytes()),
        "the key of metadata entry 0 should take 4398046511104 bytes",
    );
    let architecture = "general.architecture";
    check(
        &|bytes| {
            let at = find(bytes, architecture) + architecture.len() + 4;
            put(bytes, at, &(1u64 << 42).to_le_bytes());
        },
        "metadata `general.architecture` should take 4398046511104 bytes",
    );
    let tokens = "tokenizer.ggml.tokens";
    check(
        &|bytes| {
            // The type of the value, then that of the entries.
            let at = find(bytes, tokens) + tokens.len() + 8;
            put(bytes, at, &(1u64 << 42).to_le_bytes());
        },
        "it claims 4398046511104 elements of metadata `tokenizer.ggml.tokens`, and only",
    );
    // Its rows, its columns, its type and its offset.
    let at = dims(&whole, "blk.0.ffn_down.weight");
    let query = find(&whole, "blk.1.attn_q");
    check(
        &|bytes| put(bytes, at, &33u64.to_le_bytes()),
        "tensor `blk.0.ffn_down.weight` has rows of 33 numbers, which are no whole blocks of 32",
    );
    check(
        &|bytes| put(bytes, at, &(1u64 << 40).to_le_bytes()),
        "tensor `blk.0.ffn_down.weight` of the dimensions [1099511627776, 64] does not end inside the data",
    );
    check(
        &|bytes| put(bytes, at + 16, &77u32.to_le_bytes()),
        "tensor `blk.0.ffn_down.weight` is stored as type 77, which is unknown",
    );
    check(
        &|bytes| put(bytes, at + 20, &(1u64 << 40).to_le_bytes()),
        "tensor `blk.0.ffn_down.weight` of the dimensions [96, 64] does not end inside the data",
    );
    check(
        &|bytes| put(bytes, query, b"blk.0.attn_q"),
        "tensor `blk.0.attn_q.weight` is listed twice",
    );
    // `inspect` reads the same header.
    place.write("bad.gguf", &whole[..length / 2]);
    place.refuses(
        &["inspect", "bad.gguf"],
        1,
        &[
            "error: bad.gguf: not a valid GGUF file: ",
            "is the file truncated?",
        ],
    );
}

#[test]
fn files_of_what_is_not_known() {
    let place = Place::new();
    small_gguf::write(&place);
    let whole = place.read("model.gguf");
    let check = |from: &str, to: &str, data: &str, expected: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let at = find(&bytes, from);
        put(&mut bytes, at, to.as_bytes());
        place.write("bad.gguf", bytes);
        let arguments = ["eval", "--model", "bad.gguf", "--data", data];
        place.refuses(&arguments, 1, &[&format!("error: bad.gguf: {expected}")]);
    };
    check(
        "llama",
        "gemma",
        "rows.jsonl",
        "`general.architecture` = \"gemma\" is not yet supported (only \"llama\" is)",
    );
    check(
        "general.architecture",
        "general.architectur_",
        "rows.jsonl",
        "`general.architecture` is missing",
    );
    check(
        "llama.block_count",
        "other.block_count",
        "rows.jsonl",
        "`llama.block_count` is missing",
    );
    check(
        "tokenizer.ggml.merges",
        "tokenizer.ggml.merge_",
        "text.jsonl",
        "`tokenizer.ggml.merges` is missing",
    );
    check(
        "tokenizer.ggml.pre",
        "tokenizer.ggml.pr_",
        "text.jsonl",
        "`tokenizer.ggml.pre` = absent is not yet supported",
    );
    check(
        "gpt-2",
        "gpt-9",
        "text.jsonl",
        "`tokenizer.ggml.pre` = \"gpt-9\" is not yet supported",
    );
    check(
        "blk.1.ffn_up",
        "blk.7.ffn_up",
        "rows.jsonl",
        "tensor `model.layers.1.mlp.up_proj.weight` is missing",
    );
}

//! What is no GGUF file, and what is not yet supported.

use super::writer::{F32, Q8_0, Writer, list, tiny};
use super::{open, refused};
use lowrank_format::Gguf;
use std::fs;

#[test]
fn headers_that_lie_are_refused() {
    let check = |edit: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = tiny().bytes();
        edit(&mut bytes);
        assert_eq!(
            refused(&bytes),
            format!("not a valid GGUF file: {expected}")
        );
    };
    let whole = tiny().bytes();
    let length = whole.len();
    check(&|bytes| bytes.clear(), "it is empty");
    check(
        &|bytes| bytes.truncate(3),
        "the first four bytes should take 4 bytes, and only 3 follow: is it truncated?",
    );
    check(&|bytes| bytes[3] = b'f', "it does not begin with `GGUF`");
    check(
        &|bytes| bytes[4] = 1,
        "its version is 1, and versions 2 and 3 are read",
    );
    check(
        &|bytes| bytes[4..8].copy_from_slice(&[0, 0, 0, 3]),
        "it is big-endian, and only little-endian files are read",
    );
    check(
        &|bytes| bytes[8..16].fill(0xff),
        &format!(
            "it claims 18446744073709551615 tensors, and only {} bytes follow: is it truncated?",
            length - tensors_start(&whole)
        ),
    );
    check(
        &|bytes| bytes[16..24].fill(0x7f),
        &format!(
            "it claims 9187201950435737471 metadata entries, and only {} bytes follow: is it truncated?",
            length - 24
        ),
    );
    check(
        &|bytes| bytes[24..32].fill(0x11),
        &format!(
            "the key of metadata entry 0 should take 1229782938247303441 bytes, and only {} follow: is it truncated?",
            length - 32
        ),
    );
    check(
        &|bytes| bytes[32] = 0xff,
        "the key of metadata entry 0 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
    );
    check(
        &|bytes| bytes[52] = 13,
        "metadata `general.architecture` has the unknown type 13",
    );
    check(
        &|bytes| bytes.truncate(length - 1),
        &format!(
            "tensor `output_norm.weight` of the dimensions [8] does not end inside the data, which is {} bytes long: is \
             the file truncated?",
            56 * 32 - 1
        ),
    );
}

/// Where the descriptions of [`tiny`]'s tensors start.
fn tensors_start(bytes: &[u8]) -> usize {
    let first = b"token_embd.weight";
    let name = bytes.windows(first.len()).position(|part| part == first);
    name.unwrap() - 8
}

#[test]
fn entries_and_tensors_that_lie_are_refused() {
    let check = |edit: &dyn Fn(&mut Writer), expected: &str| {
        let mut file = tiny();
        edit(&mut file);
        assert_eq!(
            refused(&file.bytes()),
            format!("not a valid GGUF file: {expected}")
        );
    };
    check(
        &|file| file.u32("llama.block_count", 1),
        "metadata `llama.block_count` is listed twice",
    );
    check(
        &|file| file.value("flag", 7, &[2]),
        "metadata `flag` is a boolean of 2, expected 0 or 1",
    );
    check(
        &|file| file.u32("general.alignment", 24),
        "`general.alignment` is 24, expected a power of two",
    );
    check(
        &|file| file.value("list", 9, &list(17, 0)),
        "metadata `list` has the unknown type 17",
    );
    let nested = [list(9, 1), list(9, 1), list(9, 1), list(9, 1), list(9, 0)].concat();
    check(
        &|file| file.value("list", 9, &nested),
        "metadata `list` has arrays in arrays, more than 4 deep",
    );
    // Q8_0 has blocks of 32 numbers in 34 bytes.
    check(
        &|file| file.tensor("extra", &[8, 4], Q8_0, vec![0; 34]),
        "tensor `extra` has rows of 8 numbers, which are no whole blocks of 32",
    );
    check(
        &|file| file.tensor("extra", &[32, 4], Q8_0, vec![0; 34 * 4 - 1]),
        "tensor `extra` of the dimensions [32, 4] does not end inside the data, which is 1927 bytes long: is the file \
         truncated?",
    );
    check(
        &|file| file.tensor("extra", &[8, 4], 99, Vec::new()),
        "tensor `extra` is stored as type 99, which is unknown",
    );
    check(
        &|file| file.tensor("extra", &[], F32, Vec::new()),
        "tensor `extra` has 0 dimensions, expected 1 to 4",
    );
    check(
        &|file| file.tensor("extra", &[1; 5], F32, vec![0; 4]),
        "tensor `extra` has 5 dimensions, expected 1 to 4",
    );
    check(
        &|file| file.tensor("extra", &[3, 0], F32, Vec::new()),
        "tensor `extra` has the dimensions [3, 0], expected sizes above 0 whose product is a number",
    );
    check(
        &|file| file.tensor("extra", &[1 << 40, 1 << 40], F32, Vec::new()),
        "tensor `extra` has the dimensions [1099511627776, 1099511627776], expected sizes above 0 whose product is a \
         number",
    );
    check(
        &|file| file.tensor("extra", &[u64::MAX], F32, Vec::new()),
        "tensor `extra` of the dimensions [18446744073709551615] does not end inside the data, which is 1792 bytes \
         long: is the file truncated?",
    );
    check(
        &|file| file.f32s("output_norm.weight", &[8], &[1.0; 8]),
        "tensor `output_norm.weight` is listed twice",
    );
}

#[test]
fn tensors_that_overlap_or_are_not_aligned_are_refused() {
    let whole = tiny().bytes();
    // The offset of the second tensor follows its name, its rank, one size and its type.
    let name = b"blk.0.attn_norm.weight";
    let at = whole.windows(name.len()).position(|part| part == name);
    let offset = at.unwrap() + name.len() + 4 + 8 + 4;
    let with = |value: u64| {
        let mut bytes = whole.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        refused(&bytes)
    };
    assert_eq!(
        with(320),
        "not a valid GGUF file: tensor `blk.0.attn_norm.weight` starts inside tensor `token_embd.weight`"
    );
    assert_eq!(
        with(352 + 4),
        "not a valid GGUF file: tensor `blk.0.attn_norm.weight` starts at byte 356 of the data, which is no multiple of \
         the alignment 32"
    );
    assert_eq!(
        with(u64::MAX - 31),
        "not a valid GGUF file: tensor `blk.0.attn_norm.weight` of the dimensions [8] does not end inside the data, \
         which is 1792 bytes long: is the file truncated?"
    );
}

#[test]
fn what_is_not_yet_supported_is_refused_by_name() {
    let check = |key: &str, put: &dyn Fn(&mut Writer), expected: &str| {
        let mut file = tiny().without(key);
        put(&mut file);
        assert_eq!(refused(&file.bytes()), expected);
    };
    check(
        "general.architecture",
        &|file| file.text("general.architecture", "qwen2"),
        "`general.architecture` = \"qwen2\" is not yet supported (only \"llama\" is)",
    );
    check(
        "general.architecture",
        &|_| {},
        "`general.architecture` is missing",
    );
    check(
        "",
        &|file| file.tensor("extra", &[32], 20, vec![0; 18]),
        "tensor `extra` is stored as iq4_nl, which is not yet supported; expected f32, f16, bf16 or one of the types q4_0 \
         to q8_k",
    );
    check(
        "",
        &|file| file.u32("llama.expert_count", 8),
        "unknown metadata `llama.expert_count` with the value 8, which may change what the model computes",
    );
    check(
        "",
        &|file| file.flag("llama.attention.causal", false),
        "unknown metadata `llama.attention.causal` with the value false, which may change what the model computes",
    );
    check(
        "",
        &|file| file.text("llama.rope.scaling.type", "yarn"),
        "`llama.rope.scaling.type` = \"yarn\" is not yet supported (only \"none\" and \"linear\" are)",
    );
    check(
        "",
        &|file| file.text("llama.rope.scaling.type", "linear"),
        "`llama.rope.scaling.factor` is missing",
    );
    check(
        "",
        &|file| file.f32s("rope_freqs.weight", &[2], &[1.0, 3.0]),
        "tensor `rope_freqs.weight` is not yet supported with these values (only those of LLaMA 3.1 to 3.3 are)",
    );
    check(
        "",
        &|file| file.f32s("rope_freqs.weight", &[2, 1], &[1.0, 3.0]),
        "tensor `rope_freqs.weight` is no vector of f32",
    );
    check(
        "",
        &|file| file.u32("llama.rope.dimension_count", 2),
        "`llama.rope.dimension_count` = 2 is not yet supported (only the width of a head, 4, is)",
    );
}

#[test]
fn metadata_that_makes_no_sense_is_refused() {
    let check = |key: &str, put: &dyn Fn(&mut Writer), expected: &str| {
        let mut file = tiny().without(key);
        put(&mut file);
        assert_eq!(refused(&file.bytes()), expected);
    };
    check(
        "llama.block_count",
        &|file| file.text("llama.block_count", "one"),
        "`llama.block_count` is \"one\", expected an integer that is not negative",
    );
    check(
        "llama.block_count",
        &|_| {},
        "`llama.block_count` is missing",
    );
    check(
        "llama.attention.head_count",
        &|file| file.u32("llama.attention.head_count", 0),
        "`llama.attention.head_count` is 0, expected an integer above 0",
    );
    check(
        "llama.attention.head_count",
        &|file| {
            file.value(
                "llama.attention.head_count",
                10,
                &(1u64 << 63).to_le_bytes(),
            )
        },
        "tensor `blk.0.attn_q.weight` has 8 rows, which are no 9223372036854775808 heads of an even width",
    );
    check(
        "llama.attention.head_count_kv",
        &|file| file.u32("llama.attention.head_count_kv", 4),
        "tensor `blk.0.attn_k.weight` has 4 rows, which are no 4 heads of an even width",
    );
    check(
        "llama.attention.layer_norm_rms_epsilon",
        &|file| file.f32("llama.attention.layer_norm_rms_epsilon", f32::NAN),
        "`llama.attention.layer_norm_rms_epsilon` is NaN, expected a finite number",
    );
    check(
        "",
        &|file| file.u32("llama.vocab_size", 12),
        "`llama.vocab_size` is 12, but `token_embd.weight` has 11 rows",
    );
    check(
        "",
        &|file| file.f32s("model.norm.weight", &[8], &[1.0; 8]),
        "tensor `model.norm.weight` is there under two names",
    );
}

#[test]
fn weights_that_are_not_numbers_are_named() {
    let mut file = tiny();
    file.f32s("output.weight", &[8, 11], &[f32::NAN; 88]);
    let file = open(&file.bytes()).unwrap();
    let error = lowrank_frozen::Weights::tensor(&file, "lm_head.weight").unwrap_err();
    let expected =
        "model.gguf: tensor `lm_head.weight` holds NaN at element 0; expected finite numbers";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let message = || {
        let message = Gguf::open(&path).unwrap_err().to_string();
        message.replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        message(),
        "cannot read DIR/model.gguf: No such file or directory (os error 2)"
    );
    fs::create_dir(&path).unwrap();
    assert_eq!(message(), "DIR/model.gguf: is not a regular file");
}

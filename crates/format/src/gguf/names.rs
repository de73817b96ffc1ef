//! Names and row orders: llama.cpp's on one side, Hugging Face's on the other.

use super::config::Heads;
use std::ops::Range;

/// The name in a Hugging Face checkpoint of a tensor of llama.cpp, and the heads of its rows if they are in another
/// order. A name that nobody knows stays what it is.
pub(super) fn rename(name: &str, heads: Heads) -> (String, Option<usize>) {
    let known = match name {
        "token_embd.weight" => return ("model.embed_tokens.weight".to_owned(), None),
        "output_norm.weight" => return ("model.norm.weight".to_owned(), None),
        "output.weight" => return ("lm_head.weight".to_owned(), None),
        _ => name.strip_prefix("blk.").and_then(|rest| {
            let (block, rest) = rest.split_once('.')?;
            let (part, kind) = rest.split_once('.')?;
            let (part, heads) = match part {
                "attn_norm" => ("input_layernorm", None),
                "attn_q" => ("self_attn.q_proj", Some(heads.query)),
                "attn_k" => ("self_attn.k_proj", Some(heads.key)),
                "attn_v" => ("self_attn.v_proj", None),
                "attn_output" => ("self_attn.o_proj", None),
                "ffn_norm" => ("post_attention_layernorm", None),
                "ffn_gate" => ("mlp.gate_proj", None),
                "ffn_up" => ("mlp.up_proj", None),
                "ffn_down" => ("mlp.down_proj", None),
                _ => return None,
            };
            matches!(kind, "weight" | "bias")
                .then(|| (format!("model.layers.{block}.{part}.{kind}"), heads))
        }),
    };
    known.unwrap_or_else(|| (name.to_owned(), None))
}

/// Which row of the file each row of a query or key projection is.
///
/// llama.cpp rotates neighbours (0 with 1, 2 with 3, ..), Hugging Face rotates halves (0 with d/2, 1 with d/2 + 1, ..):
/// within a head of d rows, row 2i + h of the file is row h d/2 + i. `heads` divides `rows` into even parts.
pub(super) fn row_order(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let head = rows / heads;
    (0..rows).map(move |row| {
        let (start, row) = (row / head * head, row % head);
        start + row % (head / 2) * 2 + row / (head / 2)
    })
}

/// The bytes of a tensor with its rows in another order: a row of blocks moves as it is.
pub(super) fn reordered(bytes: &[u8], rows: usize, order: impl Iterator<Item = usize>) -> Vec<u8> {
    let width = bytes.len() / rows;
    let row = |at: usize| -> Range<usize> { at * width..(at + 1) * width };
    let mut result = Vec::with_capacity(bytes.len());
    for at in order {
        result.extend_from_slice(&bytes[row(at)]);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_return_to_halves() {
        // Two heads of four rows, three bytes each; the file's order is pairs.
        let file: Vec<u8> = (0..24).collect();
        let expected = [
            0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11, 12, 13, 14, 18, 19, 20, 15, 16, 17, 21, 22, 23,
        ];
        assert_eq!(reordered(&file, 8, row_order(8, 2)), expected);
        let six: Vec<usize> = row_order(6, 1).collect();
        assert_eq!(six, [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn tensors_get_their_names() {
        let heads = Heads { query: 9, key: 3 };
        for (name, expected, order) in [
            ("token_embd.weight", "model.embed_tokens.weight", None),
            ("output.weight", "lm_head.weight", None),
            ("output_norm.weight", "model.norm.weight", None),
            (
                "blk.7.attn_k.weight",
                "model.layers.7.self_attn.k_proj.weight",
                Some(3),
            ),
            (
                "blk.0.attn_q.bias",
                "model.layers.0.self_attn.q_proj.bias",
                Some(9),
            ),
            (
                "blk.12.ffn_down.weight",
                "model.layers.12.mlp.down_proj.weight",
                None,
            ),
            ("blk.1.attn_q_norm.weight", "blk.1.attn_q_norm.weight", None),
            ("blk.1.attn_q.scale", "blk.1.attn_q.scale", None),
            ("other", "other", None),
        ] {
            assert_eq!(rename(name, heads), (expected.to_owned(), order));
        }
    }
}

//! One small LLaMA as two models: a GGUF file of blocks that candle wrote, and a Hugging Face folder of the numbers that
//! those blocks hold.

use candle_core::quantized::gguf_file::{self, Value as Entry};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use lowrank::ops::rng::{Key, Purpose};
use lowrank_tests::place::Place;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;

pub const VOCAB: usize = 97;
const HIDDEN: usize = 64;
const INNER: usize = 96;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
const BLOCKS: usize = 2;

/// Writes `model.gguf` and `model/`, and rows of text and of tokens.
pub fn write(place: &Place) {
    let mut blocks: Vec<(String, QTensor)> = Vec::new();
    let mut dense: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut put = |theirs: String, ours: String, shape: &[usize], heads: Option<usize>| {
        let numbers = drawn(&ours, shape);
        // llama.cpp's order in the file, Hugging Face's in the folder.
        let (there, back) = orders(shape[0], heads);
        let numbers = numbers.index_select(&there, 0).unwrap();
        let kind = match shape {
            [_] => GgmlDType::F32,
            _ if ours.contains("up_proj") => GgmlDType::Q4_1,
            _ => GgmlDType::Q8_0,
        };
        let stored = QTensor::quantize(&numbers, kind).unwrap();
        let read = stored.dequantize(&Device::Cpu).unwrap();
        dense.insert(ours, read.index_select(&back, 0).unwrap());
        blocks.push((theirs, stored));
    };
    let hidden = &[HIDDEN];
    put(
        "token_embd.weight".into(),
        "model.embed_tokens.weight".into(),
        &[VOCAB, HIDDEN],
        None,
    );
    put(
        "output_norm.weight".into(),
        "model.norm.weight".into(),
        hidden,
        None,
    );
    for i in 0..BLOCKS {
        let keys = KEY_HEADS * HEAD_DIM;
        for (theirs, ours, shape, heads) in [
            ("attn_norm", "input_layernorm", &[HIDDEN][..], None),
            ("attn_q", "self_attn.q_proj", &[HIDDEN, HIDDEN], Some(HEADS)),
            (
                "attn_k",
                "self_attn.k_proj",
                &[keys, HIDDEN],
                Some(KEY_HEADS),
            ),
            ("attn_v", "self_attn.v_proj", &[keys, HIDDEN], None),
            ("attn_output", "self_attn.o_proj", &[HIDDEN, HIDDEN], None),
            ("ffn_norm", "post_attention_layernorm", &[HIDDEN], None),
            ("ffn_gate", "mlp.gate_proj", &[INNER, HIDDEN], None),
            ("ffn_up", "mlp.up_proj", &[INNER, HIDDEN], None),
            ("ffn_down", "mlp.down_proj", &[HIDDEN, INNER], None),
        ] {
            put(
                format!("blk.{i}.{theirs}.weight"),
                format!("model.layers.{i}.{ours}.weight"),
                shape,
                heads,
            );
        }
    }
    write_gguf(place, &blocks);
    place.write(
        "model/config.json",
        json!({
            "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
        })
        .to_string(),
    );
    let dense = dense.iter().map(|(name, tensor)| (name.as_str(), tensor));
    lowrank::format::write_safetensors(&place.path("model/model.safetensors"), dense, &[]).unwrap();
    let rows = (0..12).map(|i| {
        let answer = ["left.", "right.", "up!"][i % 3];
        json!({"prompt": format!("Turn {i} goes"), "completion": format!(" {answer}")}).to_string()
    });
    place.write("text.jsonl", rows.collect::<Vec<_>>().join("\n"));
    let rows = (0..5usize).map(|i| {
        let ids: Vec<usize> = (0..4 + 3 * i)
            .map(|at| 3 + (at * 31 + i * 17) % (VOCAB - 3))
            .collect();
        json!({"input_ids": ids, "labels": ids}).to_string()
    });
    place.write("rows.jsonl", rows.collect::<Vec<_>>().join("\n"));
}

/// Normal numbers of a size that makes attention prefer some keys.
fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let mut stream = Key::new(23, Purpose::Test).site(name).stream();
    let (centre, deviation) = match shape {
        [_, n_in] => (0.0, 1.5 / (*n_in as f64).sqrt()),
        _ => (1.0, 0.3),
    };
    let numbers: Vec<f32> = (0..shape.iter().product())
        .map(|_| (centre + deviation * stream.normal()) as f32)
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// Which row of Hugging Face's each row of llama.cpp's is, and the reverse.
fn orders(rows: usize, heads: Option<usize>) -> (Tensor, Tensor) {
    let head = heads.map_or(2, |heads| rows / heads);
    let there = |row: usize| match heads {
        None => row,
        Some(_) => row / head * head + row % 2 * (head / 2) + row % head / 2,
    };
    let there: Vec<u32> = (0..rows).map(|row| there(row) as u32).collect();
    let mut back = vec![0u32; rows];
    for (row, &from) in there.iter().enumerate() {
        back[from as usize] = row as u32;
    }
    let tensor = |order: Vec<u32>| Tensor::from_vec(order, rows, &Device::Cpu).unwrap();
    (tensor(there), tensor(back))
}

fn write_gguf(place: &Place, blocks: &[(String, QTensor)]) {
    // Three special tokens, then a byte each, but for two that are merges; the last stands for a space.
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((b'!'..b'~').map(|byte| char::from(byte).to_string()));
    for (id, merged) in [(91, "Ġg"), (92, "le")] {
        merged.clone_into(&mut tokens[id]);
    }
    tokens.push("Ġ".to_owned());
    assert_eq!(tokens.len(), VOCAB);
    let types = (0..VOCAB).map(|id| Entry::I32(if id < 3 { 3 } else { 1 }));
    let text = |text: &str| Entry::String(text.to_owned());
    let number = |number: usize| Entry::U32(number as u32);
    let metadata = [
        ("general.architecture", text("llama")),
        ("general.name", text("small")),
        ("llama.block_count", number(BLOCKS)),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.feed_forward_length", number(INNER)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KEY_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
        ("llama.rope.dimension_count", number(HEAD_DIM)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        (
            "tokenizer.ggml.tokens",
            Entry::Array(tokens.iter().map(|token| text(token)).collect()),
        ),
        ("tokenizer.ggml.token_type", Entry::Array(types.collect())),
        (
            "tokenizer.ggml.merges",
            Entry::Array(vec![text("l e"), text("Ġ g")]),
        ),
        ("tokenizer.ggml.bos_token_id", number(1)),
        ("tokenizer.ggml.eos_token_id", number(2)),
    ];
    let metadata: Vec<(&str, &Entry)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let blocks: Vec<(&str, &QTensor)> = blocks
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut file = File::create(place.path("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &blocks).unwrap();
}

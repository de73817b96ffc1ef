//! Weights and configuration.

use super::open;
use super::writer::{F16, Q8_0, Writer, tiny};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use half::f16;
use lowrank_format::{Gguf, fingerprint};
use lowrank_frozen::{BlockType, Encoding, TensorInfo, Weights};
use serde_json::{Value, json};

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn tensors_have_hugging_faces_names_and_rows() {
    let file = open(&tiny().bytes()).unwrap();
    assert_eq!(
        file.names(),
        [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.norm.weight",
        ]
    );
    assert_eq!(
        file.info("model.layers.0.mlp.down_proj.weight"),
        Some(TensorInfo {
            shape: vec![8, 6],
            encoding: DType::F32.into()
        })
    );
    assert_eq!(file.info("blk.0.attn_q.weight"), None);
    let table = file.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(table.dims(), [11, 8]);
    assert_eq!(rows(&table)[1][2], 10.0 / 8.0);
    let norm = file
        .tensor("model.layers.0.input_layernorm.weight")
        .unwrap();
    assert_eq!(norm.to_vec1::<f32>().unwrap()[3], 91.0 / 8.0);

    // Rows 0, 2, 1, 3 of each head; the first number of row r of the file is (96 + 8 r) / 8.
    let q = file
        .tensor("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    let firsts: Vec<f32> = rows(&q).iter().map(|row| row[0] - 12.0).collect();
    assert_eq!(firsts, [0., 2., 1., 3., 4., 6., 5., 7.]);
    let k = file
        .stored("model.layers.0.self_attn.k_proj.weight")
        .unwrap();
    let k = k.to_dense().unwrap();
    let firsts: Vec<f32> = rows(&k).iter().map(|row| row[0] - 20.0).collect();
    assert_eq!(firsts, [0., 2., 1., 3.]);
    let v = file
        .tensor("model.layers.0.self_attn.v_proj.weight")
        .unwrap();
    let firsts: Vec<f32> = rows(&v).iter().map(|row| row[0] - 24.0).collect();
    assert_eq!(firsts, [0., 1., 2., 3.]);
    let error = file.tensor("none").unwrap_err().to_string();
    assert!(
        error.ends_with("model.gguf: tensor `none` is missing"),
        "{error}"
    );
}

/// One query projection of 8 heads of width 4 in blocks, and a head in f16.
fn packed() -> (Writer, Tensor) {
    let mut file = Writer::new();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 8),
    ] {
        file.u32(&format!("llama.{key}"), value);
    }
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-6);
    let numbers: Vec<f32> = (0..32 * 32)
        .map(|i| ((i * 7919) % 1013) as f32 / 512.0 - 1.0)
        .collect();
    let matrix = Tensor::from_vec(numbers, (32, 32), &Device::Cpu).unwrap();
    let blocks = QTensor::quantize(&matrix, GgmlDType::Q8_0).unwrap();
    let bytes = blocks.data().unwrap().into_owned();
    file.tensor("blk.0.attn_q.weight", &[32, 32], Q8_0, bytes.clone());
    file.tensor("blk.0.ffn_up.weight", &[32, 32], Q8_0, bytes);
    let halves: Vec<u8> = (0..32 * 3)
        .flat_map(|i| f16::from_f32(i as f32 / 4.0).to_le_bytes())
        .collect();
    file.tensor("output.weight", &[32, 3], F16, halves);
    file.f32s("token_embd.weight", &[32, 3], &[0.5; 96]);
    (file, blocks.dequantize(&Device::Cpu).unwrap())
}

#[test]
fn blocks_stay_blocks_and_their_rows_are_in_order() {
    let (file, dense) = packed();
    let file = open(&file.bytes()).unwrap();
    let dense = rows(&dense);
    let q = file
        .stored("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    assert_eq!(q.encoding(), Encoding::Blocks(BlockType::Q8_0));
    assert_eq!(q.bytes(), 32 * 34);
    let unpermuted: Vec<&Vec<f32>> = (0..32)
        .map(|row| &dense[row / 4 * 4 + [0, 2, 1, 3][row % 4]])
        .collect();
    assert_eq!(
        rows(&q.to_dense().unwrap()).iter().collect::<Vec<_>>(),
        unpermuted
    );
    let read = file
        .tensor("model.layers.0.self_attn.q_proj.weight")
        .unwrap();
    assert_eq!(rows(&read).iter().collect::<Vec<_>>(), unpermuted);
    let up = file.stored("model.layers.0.mlp.up_proj.weight").unwrap();
    assert_eq!(rows(&up.to_dense().unwrap()), dense);
    let head = file.stored("lm_head.weight").unwrap();
    assert_eq!(head.encoding(), DType::F16.into());
    assert_eq!(rows(&head.to_dense().unwrap())[2][5], 69.0 / 4.0);
    assert_eq!(file.tensor("lm_head.weight").unwrap().dtype(), DType::F16);
    assert_eq!(file.config()["tie_word_embeddings"], json!(false));
    assert_eq!(file.config()["num_key_value_heads"], json!(8));
    assert_eq!(file.config()["rope_theta"], json!(10_000.0));
    // Nothing of a tokenizer: the configuration is all there is beside the weights.
    assert!(!file.has_tokenizer());
    let files: Vec<_> = file
        .side_files()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(files, ["config.json"]);
    assert_ne!(
        fingerprint(&file).unwrap(),
        fingerprint(&open(&tiny().bytes()).unwrap()).unwrap()
    );
}

#[test]
fn the_configuration_is_that_of_the_metadata() {
    let file = open(&tiny().bytes()).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 8,
        "initializer_range": 8f64.sqrt().recip(), "intermediate_size": 6, "max_position_embeddings": 64,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1,
        "num_key_value_heads": 1, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 5000.0, "tie_word_embeddings": true, "torch_dtype": "float32",
        "use_cache": true, "vocab_size": 11,
    });
    assert_eq!(Value::Object(file.config().clone()), expected);
}

#[test]
fn what_the_metadata_adds_is_in_the_configuration() {
    let check = |edit: &dyn Fn(&mut Writer), field: &str, expected: Value| {
        let mut file = tiny();
        edit(&mut file);
        let file: Gguf = open(&file.bytes()).unwrap();
        assert_eq!(file.config()[field], expected, "{field}");
    };
    check(
        &|file| {
            file.text("llama.rope.scaling.type", "linear");
            file.f32("llama.rope.scaling.factor", 2.5);
        },
        "rope_scaling",
        json!({"rope_type": "linear", "factor": 2.5}),
    );
    check(
        &|file| file.u32("tokenizer.ggml.eot_token_id", 5),
        "eos_token_id",
        json!([2, 5]),
    );
    check(
        &|file| file.u32("tokenizer.ggml.eot_token_id", 2),
        "eos_token_id",
        json!(2),
    );
    check(
        &|file| file.f32s("rope_freqs.weight", &[2], &[1.0; 2]),
        "rope_scaling",
        Value::Null,
    );
    check(
        &|file| file.u32("llama.expert_count", 0),
        "vocab_size",
        json!(11),
    );
    check(
        &|file| file.u32("llama.rope.dimension_count", 4),
        "hidden_size",
        json!(8),
    );
    check(
        &|file| file.f32s("blk.0.ffn_gate.bias", &[6], &[0.5; 6]),
        "mlp_bias",
        json!(true),
    );
    check(
        &|file| file.f32s("blk.0.attn_q.bias", &[8], &[0.5; 8]),
        "attention_bias",
        json!(true),
    );
}

#[test]
fn a_bias_of_queries_is_reordered_too() {
    let mut file = tiny();
    let numbers: Vec<f32> = (0..8).map(|i| i as f32).collect();
    file.f32s("blk.0.attn_q.bias", &[8], &numbers);
    let file = open(&file.bytes()).unwrap();
    let bias = file.tensor("model.layers.0.self_attn.q_proj.bias").unwrap();
    assert_eq!(
        bias.to_vec1::<f32>().unwrap(),
        [0., 2., 1., 3., 4., 6., 5., 7.]
    );
}

#[test]
fn versions_two_and_three_and_other_alignments_are_read() {
    let mut bytes = tiny().bytes();
    bytes[4] = 2;
    open(&bytes).unwrap();
    for alignment in [8, 64] {
        let mut file = tiny();
        file.alignment = alignment;
        file.u32("general.alignment", alignment as u32);
        let file = open(&file.bytes()).unwrap();
        let norm = file.tensor("model.norm.weight").unwrap();
        assert_eq!(norm.to_vec1::<f32>().unwrap()[7], 447.0 / 8.0);
    }
}

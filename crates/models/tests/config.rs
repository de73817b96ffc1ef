//! config.json: what is read, and what is refused with which words.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{object, plain, rich, with};
use lowrank_models::{Biases, Kind, LlamaConfig, ModelInfo, Reading};
use lowrank_ops::{Reach, RotaryScaling};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::num::NonZeroUsize;

fn read(value: &Value) -> LlamaConfig {
    LlamaConfig::from_json(object(value), "m/config.json").unwrap()
}

fn refused(value: &Value) -> String {
    let error = ModelInfo::from_json(object(value), "m/config.json").unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("m/config.json: "), "{message}");
    message["m/config.json: ".len()..].to_owned()
}

#[test]
fn every_field_is_read() {
    assert_eq!(
        read(&rich()),
        LlamaConfig {
            kind: Kind::Llama,
            vocab_size: 29,
            hidden_size: 20,
            intermediate_size: 26,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 8,
            rms_norm_eps: 1e-5,
            max_position_embeddings: 96,
            rope_theta: 500.0,
            rope_scaling: RotaryScaling::Llama3 {
                factor: 6.0,
                low_freq_factor: 1.5,
                high_freq_factor: 4.5,
                original_max_position_embeddings: 24,
            },
            tie_word_embeddings: true,
            attention_bias: Biases::All,
            mlp_bias: true,
            sliding_window: None,
            window_from: 0,
            eos_token_ids: vec![2, 7],
            pad_token_id: Some(1),
        }
    );
    let info = ModelInfo::from_json(object(&rich()), "config.json").unwrap();
    assert_eq!(
        info,
        ModelInfo {
            model_type: "llama".into(),
            reading: Reading::Onward,
            vocab_size: 29,
            hidden_size: 20,
            eos_token_ids: vec![2, 7],
            max_position_embeddings: 96,
        }
    );
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let config = read(&json!({
        "model_type": "llama", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": null, "eos_token_id": null
    }));
    assert_eq!(
        config,
        LlamaConfig {
            kind: Kind::Llama,
            vocab_size: 23,
            hidden_size: 24,
            intermediate_size: 34,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 6,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            rope_scaling: RotaryScaling::None,
            tie_word_embeddings: false,
            attention_bias: Biases::None,
            mlp_bias: false,
            sliding_window: None,
            window_from: 0,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    );
}

#[test]
fn both_spellings_of_the_rotary_embedding_mean_the_same() {
    let linear = RotaryScaling::Linear { factor: 2.5 };
    for (fields, theta, scaling) in [
        (json!({}), 1000.0, linear),
        (
            json!({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.5}}),
            1000.0,
            linear,
        ),
        (
            json!({"rope_scaling": null, "rope_theta": 700}),
            700.0,
            RotaryScaling::None,
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1000.0}}),
            1000.0,
            linear,
        ),
        (
            json!({"rope_theta": null, "rope_scaling": null,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 1.0}}),
            90.0,
            RotaryScaling::None,
        ),
    ] {
        let config = read(&with(plain(), fields));
        assert_eq!((config.rope_theta, config.rope_scaling), (theta, scaling));
    }
}

#[test]
fn what_real_files_hold_is_accepted() {
    read(&with(
        plain(),
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "bos_token_id": [1, 3], "dtype": "bfloat16",
            "torch_dtype": "float16", "initializer_range": 0.02, "pad_token_id": -1, "pretraining_tp": 1,
            "use_cache": true, "is_llama_config": true, "rope_interleaved": false, "transformers_version": "4.42.3",
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "_name_or_path": "x",
            "some_future_flag": false, "another": [], "a_third": 0, "a_fourth": "", "a_fifth": {}, "a_sixth": null
        }),
    ));
}

/// Where a field is absent, Mistral and Qwen2 have defaults of their own; `null` is another thing.
#[test]
fn windows_and_biases_are_read() {
    let small = json!({
        "vocab_size": 23, "hidden_size": 64, "intermediate_size": 34, "num_hidden_layers": 30, "num_attention_heads": 32
    });
    let of = |kind: &str, fields: Value| {
        read(&with(
            with(small.clone(), json!({"model_type": kind})),
            fields,
        ))
    };
    let window = |size: usize| Some(NonZeroUsize::new(size).unwrap());
    let reaches = |config: &LlamaConfig| [0, 4, 29].map(|block| config.reach(block));
    let (before, through) = (Reach::Before, |size| {
        Reach::Window(NonZeroUsize::new(size).unwrap())
    });

    let config = of("mistral", json!({}));
    assert_eq!(
        (config.sliding_window, config.num_key_value_heads),
        (window(4096), 8)
    );
    assert_eq!(
        (config.max_position_embeddings, config.attention_bias),
        (131_072, Biases::None)
    );
    assert_eq!(reaches(&config), [through(4096); 3]);
    let config = of(
        "mistral",
        json!({"sliding_window": null, "num_key_value_heads": null}),
    );
    assert_eq!(
        (config.sliding_window, config.num_key_value_heads),
        (None, 32)
    );
    assert_eq!(reaches(&config), [before; 3]);

    let config = of("qwen2", json!({}));
    assert_eq!(
        (config.sliding_window, config.num_key_value_heads),
        (None, 32)
    );
    assert_eq!(
        (config.max_position_embeddings, config.attention_bias),
        (32_768, Biases::Inputs)
    );
    // It says how long a window would be.
    assert_eq!(
        of(
            "qwen2",
            json!({"use_sliding_window": false, "sliding_window": 7})
        )
        .sliding_window,
        None
    );
    let config = of("qwen2", json!({"use_sliding_window": true}));
    assert_eq!(reaches(&config), [before, before, through(4096)]);
    let config = of(
        "qwen2",
        json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 3}),
    );
    assert_eq!(reaches(&config), [before, through(7), through(7)]);

    let message = |kind: &str, fields: Value| {
        refused(&with(
            with(small.clone(), json!({"model_type": kind})),
            fields,
        ))
    };
    assert_eq!(
        message("mistral", json!({"sliding_window": 0})),
        "`sliding_window` is 0, expected an integer above 0"
    );
    assert_eq!(
        message("mistral", json!({"mlp_bias": true})),
        "unknown field `mlp_bias` with the value true"
    );
    let types = json!({"use_sliding_window": true, "layer_types": ["full_attention"]});
    assert_eq!(
        message("qwen2", types),
        "`layer_types` = [\"full_attention\"] is not yet supported; supported: what `sliding_window` and \
         `max_window_layers` say"
    );
}

#[test]
fn wrong_fields_are_refused_by_name() {
    for (fields, message) in [
        (json!({"model_type": null}), "`model_type` is missing"),
        (
            json!({"model_type": 3}),
            "`model_type` is 3, expected a string",
        ),
        (
            json!({"model_type": "distilbert"}),
            "unknown `model_type` \"distilbert\"; supported: bert, llama, mistral, qwen2, roberta, xlm-roberta",
        ),
        (
            json!({"model_type": "lama"}),
            "unknown `model_type` \"lama\"; supported: bert, llama, mistral, qwen2, roberta, xlm-roberta, did you mean `llama`?",
        ),
        (
            json!({"model_type": "mamba2"}),
            "unknown `model_type` \"mamba2\"; supported: bert, llama, mistral, qwen2, roberta, xlm-roberta",
        ),
        (json!({"vocab_size": null}), "`vocab_size` is missing"),
        (
            json!({"hidden_size": 0}),
            "`hidden_size` is 0, expected an integer above 0",
        ),
        (
            json!({"num_hidden_layers": -2}),
            "`num_hidden_layers` is -2, expected an integer above 0",
        ),
        (
            json!({"intermediate_size": 34.5}),
            "`intermediate_size` is 34.5, expected an integer above 0",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads` is 3, expected a divisor of `num_attention_heads` = 4",
        ),
        (
            json!({"num_attention_heads": 5}),
            "`num_attention_heads` is 5, expected a divisor of `hidden_size` = 24",
        ),
        (
            json!({"head_dim": 7}),
            "`head_dim` is 7, expected an even number",
        ),
        (
            json!({"rms_norm_eps": 0.0}),
            "`rms_norm_eps` is 0.0, expected a number above 0",
        ),
        (
            json!({"rope_theta": -1}),
            "`rope_theta` is -1, expected a number above 0",
        ),
        (
            json!({"tie_word_embeddings": "yes"}),
            "`tie_word_embeddings` is \"yes\", expected true or false",
        ),
        (
            json!({"eos_token_id": [2, -1]}),
            "`eos_token_id` is [2,-1], expected a token id or a list of token ids",
        ),
        (
            json!({"hidden_act": "gelu"}),
            "`hidden_act` = \"gelu\" is not yet supported; supported: \"silu\"",
        ),
        (
            json!({"attention_dropout": 0.1}),
            "`attention_dropout` = 0.1 is not yet supported; supported: 0.0",
        ),
        (
            json!({"pretraining_tp": 2}),
            "`pretraining_tp` = 2 is not yet supported; supported: 1",
        ),
        (
            json!({"sliding_window": 128}),
            "`sliding_window` = 128 is not yet supported; supported: null",
        ),
        (
            json!({"quantization_config": {"bits": 4}}),
            "`quantization_config` = {\"bits\":4} is not yet supported; supported: NF4 of bitsandbytes",
        ),
        (
            json!({"quantization_config": {"quant_method": "awq", "bits": 4}}),
            "`quantization_config.quant_method` = \"awq\" is not yet supported; supported: \"bitsandbytes\"",
        ),
        (
            json!({"quantization_config": {"load_in_8bit": true}}),
            "`quantization_config.load_in_8bit` = true is not yet supported; supported: NF4, `load_in_4bit`",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes"}}),
            "`quantization_config.load_in_4bit` = false is not yet supported; supported: true",
        ),
        (
            json!({"quantization_config": {"load_in_4bit": true}}),
            "`quantization_config.bnb_4bit_quant_type` = \"fp4\" is not yet supported; supported: \"nf4\"",
        ),
        (
            json!({"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "group_size": 32}}),
            "unknown field `quantization_config.group_size` with the value 32",
        ),
        (
            json!({"num_key_value_head": 2}),
            "unknown field `num_key_value_head` with the value 2, did you mean `num_key_value_heads`?",
        ),
        (
            json!({"logit_scale": 0.5}),
            "unknown field `logit_scale` with the value 0.5",
        ),
        (
            json!({"rope_scaling": "linear"}),
            "`rope_scaling` is \"linear\", expected an object",
        ),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            "`rope_scaling.rope_type` = \"yarn\" is not yet supported; supported: \"default\", \"linear\", \"llama3\"",
        ),
        (
            json!({"rope_scaling": {"rope_type": "lama3"}}),
            "`rope_scaling.rope_type` is \"lama3\", expected one of \"default\", \"linear\", \"llama3\"",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "`rope_scaling.factor` is missing",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "fcator": 3.0}}),
            "unknown field `rope_scaling.fcator` with the value 3.0, did you mean `factor`?",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                   "high_freq_factor": 1.0, "original_max_position_embeddings": 64}}),
            "`rope_scaling.high_freq_factor` is 1.0, expected a number above `low_freq_factor` = 4.0",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
            "`rope_scaling` is {\"type\":\"linear\",\"factor\":2.5}, expected the same as `rope_parameters`, or nothing",
        ),
        (
            json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 30.0}}),
            "`rope_theta` is 1000.0, expected 30.0, as the file says elsewhere, or nothing",
        ),
        (
            json!({"vocab_size": 1u64 << 60}),
            "`vocab_size` is 1152921504606846976, expected a size that fits into memory",
        ),
        (
            json!({"num_attention_heads": 1u64 << 60, "head_dim": 1u64 << 60, "num_key_value_heads": 1}),
            "`head_dim` is 1152921504606846976, expected a size that fits into memory",
        ),
    ] {
        assert_eq!(refused(&with(plain(), fields)), message);
    }
}

#[test]
fn messages_do_not_repeat_long_values() {
    let message = refused(&with(plain(), json!({"unknown": "ü".repeat(10_000)})));
    assert!(message.len() < 300, "{message}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..5i64).prop_map(Value::from),
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number.clone(),
        "[a-z0-9]{0,8}".prop_map(Value::from),
        prop::collection::vec(number, 0..3).prop_map(Value::from),
        Just(json!({"rope_type": "llama3", "factor": 2})),
    ]
}

proptest! {
    #[test]
    fn no_value_panics(field in 0..20usize, value in any_value(), other in 0..20usize, another in any_value()) {
        let base = with(rich(), json!({"rope_theta": 500.0, "rope_scaling": null, "hidden_act": "silu"}));
        let name = |at: usize| object(&base).keys().nth(at % object(&base).len()).cloned().unwrap();
        let mut map = object(&base).clone();
        map.insert(name(field), value);
        map.insert(name(other), another);
        if let Ok(config) = LlamaConfig::from_json(&map, "config.json") {
            prop_assert!(config.num_attention_heads % config.num_key_value_heads == 0);
            prop_assert!(config.rope_theta > 0.0 && config.rms_norm_eps > 0.0);
        }
    }
}

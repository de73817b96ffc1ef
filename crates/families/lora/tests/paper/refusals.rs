//! What is refused, and what is said.

use crate::{adapt, layers};
use lowrank_adapter::{AdapterConfig, ResidualBase, Source, Start, attach};
use lowrank_lora::Lora;
use serde_json::{Value, json};

fn refuse(keys: &Value) -> String {
    let config = AdapterConfig::parse(&Lora, keys.as_object().unwrap(), Source::RunFile);
    let mut model = layers(&[("model.layers.0.up", 6, 10)]);
    let error = config
        .and_then(|config| attach(&mut model, "default", &config, Start::Seed(1)).map(|_| ()));
    error.unwrap_err().to_string()
}

fn with(key: &str, value: Value) -> String {
    let mut keys = json!({ "target_modules": ["up"] });
    keys[key] = value;
    refuse(&keys)
}

#[test]
fn values_out_of_range() {
    assert_eq!(
        with("r", json!(7)),
        "model.layers.0.up: r = 7 is larger than the matrix [6, 10] allows; use at most 6"
    );
    assert_eq!(with("r", json!(0)), "`r = 0`, expected an integer above 0");
    assert_eq!(
        with("lora_alhpa", json!(4)),
        "unknown key `lora_alhpa`, did you mean `lora_alpha`?"
    );
    assert_eq!(
        with("lora_dropout", json!(1.0)),
        "`lora_dropout = 1.0`: expected a probability of at least 0 and less than 1"
    );
    assert_eq!(
        with("lora_bias", json!(true)),
        "`lora_bias = true` is not yet supported (only false is)"
    );
}

#[test]
fn starts_that_cannot_be() {
    let expected = "expected true, false, \"gaussian\", \"orthogonal\", \"pissa\", \"pissa_niter_N\" (N up to 255) or \
                    \"olora\"";
    for word in ["pisa", "pissa_niter_", "pissa_niter_256", "pissa_niter_-1"] {
        assert_eq!(
            with("init_lora_weights", json!(word)),
            format!("`init_lora_weights = \"{word}\"`: {expected}")
        );
    }
    assert_eq!(
        with("init_lora_weights", json!(2)),
        format!("`init_lora_weights = 2`: {expected}")
    );
    for word in ["corda", "eva", "loftq", "lora_ga", "mica"] {
        let keys = json!({ "target_modules": ["up"], "r": 4, "init_lora_weights": word });
        assert_eq!(
            refuse(&keys),
            format!("model.layers.0.up: `init_lora_weights = \"{word}\"` is not yet supported")
        );
    }
    let start = |word: &str, key: &str, value: Value| {
        let mut keys = json!({ "target_modules": ["up"], "r": 4, "init_lora_weights": word });
        keys[key] = value;
        keys
    };
    assert_eq!(
        refuse(&start("orthogonal", "r", json!(5))),
        "model.layers.0.up: `init_lora_weights = \"orthogonal\"` needs an even rank, and r is 5"
    );
    assert_eq!(
        refuse(&start("pissa", "lora_alpha", json!(-2))),
        "model.layers.0.up: \"pissa\" divides by the scale, which is -0.5; give a positive `lora_alpha`"
    );
    assert_eq!(
        refuse(&start("olora", "r", json!(7))),
        "model.layers.0.up: r = 7 is larger than the matrix [6, 10] allows; use at most 6"
    );
    let mut keys = start("pissa_niter_3", "use_rslora", json!(true));
    keys["alpha_pattern"] = json!({ "up": 5 });
    assert_eq!(
        refuse(&keys),
        "a residual start cannot be exported with `use_rslora = true` together with `rank_pattern` or `alpha_pattern`; \
         leave one of them out"
    );
    // An orthogonal start from a file is whatever the file holds.
    keys["init_lora_weights"] = json!("orthogonal");
    keys["r"] = json!(2);
    adapt(
        &mut layers(&[("model.layers.0.up", 6, 10)]),
        &keys,
        Start::Seed(1),
    );
}

/// How an unconverted file of each start can be read: without an answer, on the original base, on the residual.
#[test]
fn an_unconverted_file_needs_an_answer() {
    let read = |word: &str, base: Option<ResidualBase>| -> Result<Value, String> {
        let keys = json!({
            "init_lora_weights": word, "corda_config": { "corda_method": "kpm" }, "eva_config": { "rho": 2.0 },
            "loftq_config": { "loftq_bits": 4 }, "lora_ga_config": { "direction": "ArB2r" },
        });
        let keys = keys.as_object().unwrap();
        let config = AdapterConfig::parse(&Lora, keys, Source::AdapterFolder).unwrap();
        let config = config.read_as(base).map_err(|error| error.to_string())?;
        Ok(config.own["init_lora_weights"].clone())
    };
    let (original, residual) = (Some(ResidualBase::Original), Some(ResidualBase::Residual));
    for word in ["pissa", "olora"] {
        let refused = read(word, None).unwrap_err();
        assert!(
            refused.starts_with(&format!(
                "`init_lora_weights = \"{word}\"` was saved unconverted"
            )) && refused.contains("--residual-base original"),
            "{refused}"
        );
        assert_eq!(read(word, original), Ok(json!(word)));
        assert_eq!(read(word, residual), Ok(json!(true)));
    }
    for word in ["pissa_niter_4", "corda", "loftq", "lora_ga"] {
        let refused = read(word, None).unwrap_err();
        assert!(refused.contains("--residual-base residual"), "{refused}");
        let refused = read(word, original).unwrap_err();
        assert!(
            refused.contains("cannot be used on the original one"),
            "{refused}"
        );
        assert_eq!(read(word, residual), Ok(json!(true)));
    }
    for base in [None, original, residual] {
        for word in ["gaussian", "orthogonal"] {
            assert_eq!(read(word, base), Ok(json!(word)));
        }
        // Starts that leave the base alone, and that we do not make: their tensors are plain LoRA.
        for word in ["eva", "mica"] {
            assert_eq!(read(word, base), Ok(json!(true)));
        }
    }
}
